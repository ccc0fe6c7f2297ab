"""Dubbing: the speech of every cue at its time, in one file as long as the film.

Responsible for the rate of a cue that is too long, for where its speech may end, for the file, and
for the report on how each cue fits. Not responsible for synthesizing (runner.py) or for printing.

Speech that is too long for its cue

    1. is faster, by at most ``Timing.stretch`` (it is synthesized at its own rate first, since only
       then its length is known, and again with the same seed at the rate that is needed)
    2. goes on in the gap behind the cue
    3. overlaps with the next cue, or is cut where that one starts

Speech that is shorter stays as it is. A file's own silence at both ends does not count. Silence
that a cue's text asks for before its first word does: its speech begins so much later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import containers
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio.silence import MARGIN, sound_span
from chatterbox_opt.batch.job_file import Item, Job
from chatterbox_opt.batch.joining.join import check_length
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.config.speaking_rate import MAX_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Request, Result, SynthesizeBatch

if TYPE_CHECKING:
    from chatterbox_opt.audio.tags import Tags
    from chatterbox_opt.utils.wave import Wave, WaveSink

STRETCH = 1.25  # as far as speech sounds natural
MAX_SECONDS = 100 * 3600  # of a film
SPARE = 0.02  # seconds; the length at another rate is that of whole mel frames
FADE = SAMPLE_RATE // 50  # samples before a cut
_BLOCK = 1 << 16  # samples that are read, or of silence written, at once


class Overrun(str, Enum):
    """What becomes of speech that is too long even so."""

    OVERLAP = "overlap"
    CUT = "cut"


class Fit(str, Enum):
    """How the speech of a cue fits."""

    NATURAL = "natural"  # within the cue, at its own rate
    FASTER = "faster"  # within the cue
    GAP = "gap"  # within the cue and the gap behind it
    OVERLAP = "overlap"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Timing:
    """How speech is fitted to its cues.

    Attributes:
        stretch: by which it may be faster, from 1.
        overrun: what becomes of the rest.
    """

    stretch: float = STRETCH
    overrun: Overrun = Overrun.OVERLAP


@dataclass(frozen=True, slots=True)
class CueFit:
    """How the speech of one cue fits.

    Attributes:
        id, row, start, end: of the cue; seconds.
        fit: in a word.
        rate: at which it is spoken.
        seconds: of speech in the file.
        over: seconds of them behind the cue's end.
        lost: seconds that were cut.
    """

    id: str
    row: int
    start: float
    end: float
    fit: Fit
    rate: float
    seconds: float
    over: float
    lost: float


def check_times(job: Job) -> None:
    """Check that all lines have times, of a film.

    Raises:
        InputError: they have not, or one is far too late, even one without speech.
    """
    for line in job.lines:
        if line.start is None or line.end is None:
            raise InputError("--timed is for subtitles: give a .srt, .vtt, .ass or .ssa")
        if (latest := max(line.start, line.end)) > MAX_SECONDS:
            raise InputError(
                f"row {line.row} ends after {latest / 3600:.0f} h: correct its time for --timed"
            )


def film_seconds(job: Job) -> float:
    """The end of the last cue, one without speech included."""
    return max(line.end for line in job.lines if line.end is not None)


class Fitting:
    """Lets speech that is too long for its cue be synthesized again, faster."""

    def __init__(self, items: Iterable[Item], stretch: float) -> None:
        """For the items of a job.

        Args:
            stretch: by which speech may be faster.
        """
        self._items, self._stretch = {item.id: item for item in items}, stretch
        self._rates: dict[tuple[str, int], float] = {}  # by id and seed, of what is faster

    def rate(self, result: Result) -> float:
        """At which a result is spoken."""
        return self._rates.get((result.id, result.seed), self._items[result.id].rate)

    def around(self, synthesize: SynthesizeBatch) -> SynthesizeBatch:
        """``synthesize`` with results that fit, as far as they may be faster."""

        def results(requests: Iterable[Request]) -> Iterator[Result]:
            source, again = iter(requests), deque[Request]()
            sent: dict[str, Request] = {}

            def taken() -> Iterator[Request]:
                while request := again.popleft() if again else next(source, None):
                    sent[request.id] = request
                    yield request

            while True:
                for result in synthesize(taken()):
                    if faster := self._faster(sent.pop(result.id), result):
                        again.append(faster)
                    else:
                        yield result
                if not again:
                    return

        return results

    def _faster(self, request: Request, result: Result) -> Request | None:
        """The request of the same speech at the rate that its cue needs; None if it has it."""
        import numpy as np

        item = self._items[request.id]
        if result.error is not None or request.rate != item.rate:
            return None
        wave = np.concatenate([piece.samples for piece in result.pieces])
        rate = fitting_rate(item, wave, self._stretch)
        if rate == item.rate:
            return None
        self._rates[result.id, result.seed] = rate
        return replace(request, sampling=replace(request.sampling, seed=result.seed), rate=rate)


def fitting_rate(item: Item, wave: Wave, stretch: float) -> float:
    """The rate at which speech fits into its cue, or the highest that is allowed.

    Args:
        wave: float32 [n], of the item at its own rate.
        stretch: by which it may be faster.
    """
    start, stop = sound_span([wave], margin=0)
    seconds, room = (stop - start) / SAMPLE_RATE, _end(item) - _begin(item)
    if seconds <= room:
        return item.rate
    needed = seconds / (room - SPARE) if room > SPARE else stretch
    return max(item.rate, min(item.rate * min(needed, stretch), MAX_RATE))


def dub(
    items: Iterable[Item],
    entries: Mapping[str, Entry],
    directory: Path,
    target: str,
    timing: Timing,
    length: float,
    tags: Tags | None = None,
) -> tuple[list[CueFit], float]:
    """Write the speech of all items to one file, each at its time.

    Args:
        target: the file to write; its extension is its format.
        length: seconds that the file has at least.
        tags: what the file says about itself.

    Returns:
        how each item fits, in the order in which they begin, and the seconds of the file.

    Raises:
        OutputError: disk full, a file missing or damaged, or longer than a wav can be.
    """
    cues = sorted(items, key=_begin)
    check_length(target, max(length, *(_begin(cue) + entries[cue.id].duration for cue in cues)))
    fits = []
    with audio_files.writer(target, tags=tags) as sink:
        mixer = _Mixer(sink)
        for cue, limit in zip(cues, _limits(cues), strict=True):
            wave, lead, samples = _speech(directory / entries[cue.id].file)
            begin, lost = _sample(_begin(cue)), 0
            if limit is not None and timing.overrun is Overrun.CUT:
                lost = max(begin + samples - limit, 0)
            heard = samples - lost
            mixer.add(begin - lead, _cut(wave, lead + heard) if lost else wave)
            fits.append(_fit(cue, entries[cue.id].rate, limit, heard, lost))
        mixer.advance(max(_sample(length), mixer.end))
    return fits, mixer.end / SAMPLE_RATE


def _fit(cue: Item, rate: float, limit: int | None, heard: int, lost: int) -> CueFit:
    """How a cue fits.

    Args:
        limit: sample at which its speech has to end, if any.
        heard, lost: samples of its speech in the file, and of what was cut.
    """
    stop = _sample(_begin(cue)) + heard
    over = max(stop - _sample(_end(cue)), 0)
    if lost:
        fit = Fit.CUT
    elif limit is not None and stop > limit:
        fit = Fit.OVERLAP
    elif over:
        fit = Fit.GAP
    else:
        fit = Fit.FASTER if rate > cue.rate else Fit.NATURAL
    seconds = (round(samples / SAMPLE_RATE, 3) for samples in (heard, over, lost))
    end = max(cue.end or 0.0, _start(cue))
    return CueFit(cue.id, cue.row, _start(cue), end, fit, round(rate, 3), *seconds)


def _limits(cues: Sequence[Item]) -> list[int | None]:
    """For each cue the sample at which its speech has to end, not to be heard over that of a cue
    which goes on after it; None: no such cue follows.

    Args:
        cues: in the order in which their speech begins.
    """
    limits: list[int | None] = []
    latest = 0.0  # end of the cues before
    for number, cue in enumerate(cues):
        end = _end(cue)
        if latest > end:
            limits.append(_sample(end))
        else:
            after = (cues[index] for index in range(number + 1, len(cues)))
            following = next((other for other in after if _end(other) > end), None)
            limits.append(None if following is None else _sample(max(end, _begin(following))))
        latest = max(latest, end)
    return limits


def _speech(path: Path) -> tuple[Wave, int, int]:
    """An item's file without its silence: float32 [n], of which the first samples are a margin,
    their number, and the number of samples of speech after them."""
    import numpy as np

    wave = np.concatenate([np.zeros(0, np.float32), *containers.read_blocks(path, _BLOCK)])
    start, stop = sound_span([wave], margin=0)
    lead = min(start, MARGIN)
    return wave[start - lead : stop + MARGIN], lead, stop - start


def _cut(wave: Wave, samples: int) -> Wave:
    """The first samples, the last of them faded out."""
    import numpy as np

    cut = wave[:samples].copy()
    fade = min(FADE, len(cut))
    cut[len(cut) - fade :] *= np.linspace(1, 0, fade + 1, dtype=np.float32)[1:]
    return cut


def _start(item: Item) -> float:
    assert item.start is not None
    return item.start


def _begin(item: Item) -> float:
    """Where the speech of a cue begins: after the silence that its text asks for."""
    return _start(item) + (item.edges[0] or 0.0)


def _end(item: Item) -> float:
    """The end of a cue, not before its speech begins."""
    assert item.end is not None
    return max(item.end, _begin(item))


def _sample(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


class _Mixer:
    """Adds sounds to a file in the order of their starts, and writes what is complete."""

    def __init__(self, sink: WaveSink) -> None:
        import numpy as np

        self._sink = sink
        self._written = 0
        self._waiting = np.zeros(0, np.float32)  # what follows

    @property
    def end(self) -> int:
        """The sample of the file after the last one that is there."""
        return self._written + len(self._waiting)

    def add(self, start: int, wave: Wave) -> None:
        """Add float32 [n] at a sample; what is before the start of the sound before is left out."""
        import numpy as np

        wave = wave[max(self._written - start, 0) :]
        self.advance(max(start, self._written))
        longer = max(len(wave) - len(self._waiting), 0)
        self._waiting = np.pad(self._waiting, (0, longer))
        self._waiting[: len(wave)] += wave

    def advance(self, to: int) -> None:
        """Write what is before a sample of the file; it is complete."""
        import numpy as np

        count = to - self._written
        self._sink.write(np.clip(self._waiting[:count], -1, 1))
        silent = count - len(self._waiting)
        for begin in range(0, silent, _BLOCK):
            self._sink.write(np.zeros(min(_BLOCK, silent - begin), np.float32))
        self._waiting = self._waiting[count:]
        self._written = to
