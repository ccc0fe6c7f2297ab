"""Joins the audio files of a batch to one file, with chapter marks where its format has them.

Responsible for their order, the silence between them and where chapters begin; copies block by
block, so memory does not grow with the length of the result. Not responsible for synthesizing the
files, for loudness (mastering.py) or for formats (audio/containers.py).

A file has silence of its own at both ends, of a length that depends on its words. It is left out,
so that the pause that was asked for is the one that is heard; silence that its text asks for at its
ends is left out there too, and put between the items in place of the usual pause. PerTh's watermark
is spread over all of a file's samples, so that it is found in what remains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import containers, loudness
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio.silence import FRAME, sound_span
from chatterbox_opt.audio.tags import Chapter, Tags, one_line
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.joining import mastering
from chatterbox_opt.batch.joining.mastering import Master, Measured
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.batch.silences import total
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import OutputError

if TYPE_CHECKING:
    from chatterbox_opt.batch.joining.mastering import Sound
    from chatterbox_opt.utils.wave import Wave

MAX_WAV_BYTES = 2**32 - 2**16  # a wav header stores sizes in 32 bits
SAMPLE_BYTES = 2
OPENING = "Opening"  # title of what comes before the first chapter, in a book without a title
_BLOCK = 256 * FRAME  # samples


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds of silence between items that ask for none themselves.

    Attributes:
        item: between two items.
        chapter: before a chapter and at a scene break.
        keep_silence: keep the silence at both ends of the files too.
    """

    item: float = 0.5
    chapter: float = 1.5
    keep_silence: bool = False

    def around(self, items: Sequence[Item], head: float, tail: float) -> list[float]:
        """Seconds before each item, and after the last one: what is asked for there, else a pause.

        Args:
            head, tail: at least before the first one and after the last one.
        """
        (first, last), edges = (items[0], items[-1]), [item.edges for item in items]
        silences = [max(head, self._asked(first.silence, edges[0][0]) or 0.0)]
        for item, (_, before), (after, _) in zip(items[1:], edges, edges[1:], strict=False):
            asked = self._asked(item.silence, before, after)
            silences.append(self._usual(item) if asked is None else asked)
        return [*silences, max(tail, self._asked(last.silence_after, edges[-1][1]) or 0.0)]

    def _asked(self, rows: float | None, *edges: float | None) -> float | None:
        """Seconds that rows without words and the edges of texts ask for; None: they do not."""
        in_files = total(edges)
        return total([rows, 0.0 if self.keep_silence and in_files is not None else in_files])

    def _usual(self, item: Item) -> float:
        """Seconds before ``item``: rows without words add a pause each, up to a chapter's."""
        if item.starts_chapter:
            return self.chapter
        return min(self.item * (1 + item.pauses), max(self.item, self.chapter))


@dataclass(frozen=True, slots=True)
class Joined:
    """A joined file.

    Attributes:
        seconds: of audio.
        chapters: that were marked.
        measured: None if it is not mastered, or a stream, which cannot be read again.
        starts: when the file of each item would begin if its silence were not left out; seconds.
    """

    seconds: float
    chapters: int = 0
    measured: Measured | None = None
    starts: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Part:
    """What is taken of an item's file.

    Attributes:
        quiet: samples without speech before it.
        start, stop: samples of the file.
    """

    path: Path
    quiet: int
    start: int
    stop: int


def join(
    items: Sequence[Item],
    entries: Mapping[str, Entry],
    directory: Path,
    target: str,
    pauses: Pauses,
    tags: Tags | None = None,
    master: Master | None = None,
) -> Joined:
    """Write the files of all items to one file, in the job's order, block by block.

    Args:
        target: the file to write; its extension is its format.
        tags: without chapters: these are found here (``check_chapters``).

    Raises:
        OutputError: disk full, a file missing or damaged, or longer than a wav can be.
    """
    import numpy as np

    extension = audio_files.extension_of(target)
    paths = [directory / entries[item.id].file for item in items]
    head, tail = (mastering.HEAD, mastering.TAIL) if master else (0.0, 0.0)
    *gaps, tail = pauses.around(items, head, tail)
    check_length(target, sum(entries[item.id].duration for item in items) + sum(gaps) + tail)
    parts = [
        _Part(path, round(gap * SAMPLE_RATE), *_span(path, whole=pauses.keep_silence))
        for path, gap in zip(paths, gaps, strict=True)
    ]
    end = round(tail * SAMPLE_RATE)
    ends = np.cumsum([part.quiet + part.stop - part.start for part in parts]).tolist()
    starts = [stop - (part.stop - part.start) for stop, part in zip(ends, parts, strict=True)]
    tags = tags or Tags()
    if containers.has_tags(extension):
        tags = replace(tags, chapters=chapters(items, starts, ends[-1] + end, tags.title))
    sound = partial(_sound, parts, end)
    if master:
        measured = _write_mastered(target, sound, tags)
    else:
        _write(target, sound(), tags)
        measured = None
    return Joined(
        (ends[-1] + end) / SAMPLE_RATE,
        len(tags.chapters),
        measured,
        tuple((at - part.start) / SAMPLE_RATE for at, part in zip(starts, parts, strict=True)),
    )


def check_length(target: str, seconds: float) -> None:
    """Raise OutputError if a joined file would be longer than its format can be."""
    too_long = seconds * SAMPLE_RATE * SAMPLE_BYTES > MAX_WAV_BYTES
    if audio_files.extension_of(target) == ".wav" and too_long:
        hours = seconds / 3600
        raise OutputError(f"'{target}' would have {hours:.0f} h, too long for a wav: give .flac")


def _write(target: str, blocks: Iterable[Wave], tags: Tags) -> None:
    with audio_files.writer(target, tags=tags) as sink:
        for block in blocks:
            sink.write(block)


def _write_mastered(target: str, sound: Sound, tags: Tags) -> Measured | None:
    """Write a file until it meets its targets; a stream, which cannot be read again, once."""
    aim = mastering.Aim.of(audio_files.extension_of(target))
    original = loudness.measured(sound())
    for _ in range(mastering.ROUNDS):
        _write(target, mastering.mastered(sound, aim, original), tags)
        if audio_files.is_stream(target):
            return None
        measured = mastering.measure(Path(target))
        if not (measured.missed and math.isfinite(measured.loudness)):
            break
        aim = aim.corrected(measured)
    return measured


def check_chapters(items: Sequence[Item], target: str) -> None:
    """Raise InputError if a file cannot have the chapters of a job, before any work."""
    extension = audio_files.extension_of(target)
    if containers.has_tags(extension):
        marked = chapters(items, range(len(items)), len(items), "")
        containers.check_tags(extension, Tags(chapters=marked))


def chapters(
    items: Sequence[Item], starts: Sequence[int], end: int, title: str
) -> tuple[Chapter, ...]:
    """The chapters of a joined file; none if no item begins one with a title.

    A heading that follows another at once (a part and its first chapter, a number and a name) is
    of the same chapter. What comes before the first one is a chapter too, because players want
    them to cover the file.

    Args:
        starts: first sample of each item in the file.
        end: number of samples of the file.
        title: of the book.
    """
    marks: list[tuple[str, int]] = []
    follows = False
    for item, start in zip(items, starts, strict=True):
        if item.chapter and follows:
            marks[-1] = (f"{marks[-1][0]}: {item.chapter}", marks[-1][1])
        elif item.chapter:
            marks.append((item.chapter, start))
        follows = bool(item.chapter)
    if not marks:
        return ()
    if items[0].chapter:
        marks[0] = (marks[0][0], 0)
    else:
        marks.insert(0, (title or OPENING, 0))
    stops = [*(start for _, start in marks[1:]), end]
    return tuple(
        Chapter(one_line(name), start, stop)
        for (name, start), stop in zip(marks, stops, strict=True)
    )


def _span(path: Path, *, whole: bool) -> tuple[int, int]:
    """The samples of a file that are taken; not ``whole``: without the silence at its ends."""
    blocks = containers.read_blocks(path, _BLOCK)
    return (0, sum(map(len, blocks))) if whole else sound_span(blocks)


def _sound(parts: Sequence[_Part], end: int) -> Iterator[Wave]:
    """Samples of all files with what is between them.

    Args:
        end: samples without speech behind the last one.
    """
    for part in parts:
        yield from _silence(part.quiet)
        position = 0
        # not by seeking: in an mp3 it is inexact, and libmpg123 prints messages
        for block in containers.read_blocks(part.path, _BLOCK):
            yield block[max(part.start - position, 0) : max(part.stop - position, 0)]
            position += len(block)
    yield from _silence(end)


def _silence(samples: int) -> Iterator[Wave]:
    import numpy as np

    for begin in range(0, samples, _BLOCK):
        yield np.zeros(min(_BLOCK, samples - begin), np.float32)
