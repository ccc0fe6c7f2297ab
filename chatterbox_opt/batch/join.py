"""Joins the audio files of a batch to one file.

Responsible for their order and the silence between them; copies block by block, so memory does
not grow with the length of the result. Not responsible for synthesizing the files.

A file has silence of its own at both ends, of a length that depends on its words. It is left out,
so that the pause that was asked for is the one that is heard. PerTh's watermark is spread over all
of a file's samples, so that it is found in what remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio.silence import FRAME, sound_span
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import OutputError

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

MAX_WAV_BYTES = 2**32 - 2**16  # a wav header stores sizes in 32 bits
SAMPLE_BYTES = 2
_BLOCK = 256 * FRAME  # samples


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds of silence between items.

    Attributes:
        item: between two items.
        chapter: before a chapter and at a scene break.
        keep_silence: keep the silence at both ends of the files too.
    """

    item: float = 0.5
    chapter: float = 1.5
    keep_silence: bool = False

    def before(self, item: Item) -> float:
        """Seconds before ``item``: rows without words add a pause each, up to a chapter's."""
        if item.starts_chapter:
            return self.chapter
        return min(self.item * (1 + item.pauses), max(self.item, self.chapter))


@dataclass(frozen=True, slots=True)
class Joined:
    """What was joined.

    Attributes:
        seconds: of audio.
        starts: when the file of each item would begin if its silence were not left out; seconds.
    """

    seconds: float
    starts: tuple[float, ...]


def join(
    items: Iterable[Item],
    entries: Mapping[str, Entry],
    directory: Path,
    target: str,
    pauses: Pauses,
) -> Joined:
    """Write the files of all items to one file, in the job's order, block by block.

    Args:
        target: the file to write; its extension is its format.

    Raises:
        OutputError: disk full, a file missing or damaged, or longer than a wav can be.
    """
    import numpy as np

    items = list(items)
    gaps = [0, *(round(pauses.before(item) * SAMPLE_RATE) for item in items[1:])]
    longest = sum(entries[item.id].duration for item in items) * SAMPLE_RATE + sum(gaps)
    check_length(target, longest / SAMPLE_RATE)
    written, starts = 0, []
    with audio_files.writer(target) as sink:
        for item, gap in zip(items, gaps, strict=True):
            sink.write(np.zeros(gap, dtype=np.float32))
            written += gap
            path = directory / entries[item.id].file
            span = None if pauses.keep_silence else _span(path)
            starts.append((written - (span[0] if span else 0)) / SAMPLE_RATE)
            for block in _sound(path, span):
                sink.write(block)
                written += len(block)
    return Joined(written / SAMPLE_RATE, tuple(starts))


def check_length(target: str, seconds: float) -> None:
    """Raise OutputError if a joined file would be longer than its format can be."""
    too_long = seconds * SAMPLE_RATE * SAMPLE_BYTES > MAX_WAV_BYTES
    if Path(target).suffix.lower() == ".wav" and too_long:
        hours = seconds / 3600
        raise OutputError(f"'{target}' would have {hours:.0f} h, too long for a wav: give .flac")


def _span(path: Path) -> tuple[int, int]:
    """First and last sample of a file's sound."""
    import soundfile

    with soundfile.SoundFile(path) as file:
        return sound_span(file.blocks(_BLOCK, dtype="float32"))


def _sound(path: Path, span: tuple[int, int] | None) -> Iterator[Wave]:
    """The samples of a file within ``span``; None: all."""
    import soundfile

    position = 0
    with soundfile.SoundFile(path) as file:
        # not file.seek: in an mp3 it is inexact, and libmpg123 prints messages
        for block in file.blocks(_BLOCK, dtype="float32"):
            start, stop = (0, len(block)) if span is None else (end - position for end in span)
            yield block[max(start, 0) : max(stop, 0)]
            position += len(block)
