"""Joins the audio files of a batch to one file.

Responsible for their order and the silence between them; copies block by block, so memory does
not grow with the length of the result. Not responsible for synthesizing the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import OutputError

MAX_WAV_BYTES = 2**32 - 2**16  # a wav header stores sizes in 32 bits
SAMPLE_BYTES = 2


def join(
    items: Iterable[Item],
    entries: Mapping[str, Entry],
    directory: Path,
    target: str,
    pauses: tuple[float, float],
) -> float:
    """Write the files of all items to one file, in the job's order, block by block.

    Args:
        target: the file to write; its extension is its format.
        pauses: seconds of silence between items, and before a chapter.

    Returns:
        seconds of audio.

    Raises:
        OutputError: disk full, a file missing or damaged, or longer than a wav can be.
    """
    import numpy as np
    import soundfile

    items = list(items)
    gaps = [round(pauses[item.starts_chapter] * SAMPLE_RATE) for item in items[1:]]
    length = sum(entries[item.id].duration for item in items) + sum(gaps) / SAMPLE_RATE
    is_wav = Path(target).suffix.lower() == ".wav"
    if is_wav and length * SAMPLE_RATE * SAMPLE_BYTES > MAX_WAV_BYTES:
        raise OutputError(
            f"'{target}' would have {length / 3600:.0f} h, too long for a wav: give .flac"
        )
    with audio_files.writer(target) as sink:
        for item, gap in zip(items, [0, *gaps], strict=True):
            sink.write(np.zeros(gap, dtype=np.float32))
            with soundfile.SoundFile(directory / entries[item.id].file) as file:
                for block in file.blocks(1 << 16, dtype="float32"):
                    sink.write(block)
    return length
