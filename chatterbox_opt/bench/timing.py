"""The work that the rows of a benchmark are measured on, and the clock.

Responsible for the same tokens and the same stages in every row. Not responsible for what runs them
(backends.py, upstream.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from chatterbox_opt.config import hardware
from chatterbox_opt.config.model_config import SPEECH_TOKENS, TOKEN_RATE
from chatterbox_opt.config.profile import TURBO_FLOW

SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."


@dataclass(frozen=True, slots=True)
class BenchJob:
    """The work that every row is measured on.

    Attributes:
        model: name or directory, as for synth.
        device: "auto", "cuda", "mps" or "cpu".
        sentence: the text of the prefill.
        tokens: the forced speech tokens.
        runs: measured runs of each row, after the warm-up.
        language: of the sentence, for models that know several; None: English.
        flow: whose flow the rows with another one have, see ``Profile.flow_model``.
        cold: whether whole processes are measured too, see cold_start.py.
        timeout: seconds that a row may take to load, or for one run.
    """

    model: str
    device: str = hardware.AUTO
    sentence: str = SENTENCE
    tokens: tuple[int, ...] = ()
    runs: int = 3
    language: str | None = None
    flow: str = TURBO_FLOW
    cold: bool = False
    timeout: float = 1800.0


def forced_tokens(seconds: float) -> tuple[int, ...]:
    """Random speech tokens for this many seconds of audio; the same ones on every call."""
    count = max(2, round(seconds * TOKEN_RATE))
    tokens = torch.randint(0, SPEECH_TOKENS, (count,), generator=torch.Generator().manual_seed(0))
    return tuple(tokens.tolist())


class StageTimer:
    """Seconds between laps; synchronizes with a GPU at every lap."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, {}  # type: tuple[torch.device, dict[str, float]]
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """Store the time since the last lap under ``name``."""
        now = self._now()
        self.seconds[name], self._last = now - self._last, now
