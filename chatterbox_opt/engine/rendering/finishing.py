"""The last step of a piece: its watermark, and the silence before and after it.

Responsible for one piece. Not responsible for which thread does it (scheduler.py).
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.request import Piece
from chatterbox_opt.utils.wave import Wave


def finished(
    piece: Piece,
    silences: tuple[float, float],
    watermark: Watermark | None,
    before: Wave | None,
    after: Wave | None,
) -> Piece:
    """A piece with watermark, and seconds of silence before and after it."""
    wave, seconds = piece.samples, dict(piece.seconds)
    if watermark and len(wave):
        start = time.perf_counter()
        wave = watermark.apply(wave, before, after)
        seconds["watermark"] = time.perf_counter() - start
    lead, pause = (np.zeros(round(one * SAMPLE_RATE), dtype=np.float32) for one in silences)
    return replace(piece, samples=np.concatenate((lead, wave, pause)), seconds=seconds)
