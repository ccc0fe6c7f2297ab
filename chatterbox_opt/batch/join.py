"""The files of a batch, joined to one.

Knows their order and the silence between them; works block by block, so that a book of many hours
needs no memory. Knows nothing of how they were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import OutputError

WAV_LIMIT = 2**32 - 2**16  # bytes: a wav counts its own in 32 bits
SAMPLE_BYTES = 2


def join(
    items: Iterable[Item],
    entries: Mapping[str, Entry],
    directory: Path,
    book: str,
    pauses: tuple[float, float],
) -> float:
    """Write one file from those of all items, in the job's order, block by block.

    Args:
        pauses: seconds of silence between items, and before a chapter.

    Returns:
        seconds of sound.

    Raises:
        OutputError: disk full, a file gone or damaged, or longer than a wav can be.
    """
    import numpy as np
    import soundfile

    items = list(items)
    gaps = [round(pauses[item.starts_chapter] * SAMPLE_RATE) for item in items[1:]]
    length = sum(entries[item.id].duration for item in items) + sum(gaps) / SAMPLE_RATE
    if Path(book).suffix.lower() == ".wav" and length * SAMPLE_RATE * SAMPLE_BYTES > WAV_LIMIT:
        raise OutputError(
            f"'{book}' would have {length / 3600:.0f} h, too long for a wav: give .flac"
        )
    with audio_files.writer(book) as sink:
        for item, gap in zip(items, [0, *gaps], strict=True):
            sink.write(np.zeros(gap, dtype=np.float32))
            with soundfile.SoundFile(directory / entries[item.id].file) as file:
                for block in file.blocks(1 << 16, dtype="float32"):
                    sink.write(block)
    return length
