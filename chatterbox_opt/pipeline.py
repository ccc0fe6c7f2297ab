"""The three stages in a row: one chunk in, its sound out.

Knows the order of the stages and where each gets its inputs. Knows nothing of long texts, files
or profiles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from chatterbox_opt.errors import NumericsError
from chatterbox_opt.fallback import Ladder
from chatterbox_opt.offload import Residency
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.shapes import SPEECH_TOKENS
from chatterbox_opt.t3 import Prompt, Step
from chatterbox_opt.voice import Voice

OnToken = Callable[[int], None]
STAGES = ("t3", "flow", "vocoder")


@dataclass(frozen=True, slots=True)
class Spoken:
    """One chunk's sound.

    Attributes:
        wave: float32 [n] in [-1, 1] at 24 kHz, without watermark.
        tokens: how many speech tokens it was made of.
        seconds: of work, by stage.
    """

    wave: npt.NDArray[np.float32]
    tokens: int
    seconds: Mapping[str, float]


class Pipeline:
    """Our own engine for one chunk: t3, flow, vocoder."""

    def __init__(self, tokenizer: Tokenizer, residency: Residency, step: Step | None) -> None:
        """Take over loaded stages.

        Args:
            residency: holds t3, flow and vocoder.
            step: a compiled form of T3's step, or None to run it eager.
        """
        self.tokenizer = tokenizer
        self.residency = residency
        self._ladder = Ladder(residency)
        self.step = step
        self.device = residency.device

    def close(self) -> None:
        """Give the device's memory back."""
        self.step = None
        self.residency.close()

    def speech_tokens(
        self,
        text: str,
        voice: Voice,
        sampling: Sampling,
        generator: torch.Generator,
        on_token: OnToken,
    ) -> Tensor:
        """Run t3 on one normalised chunk: int64 [T], only ids that are sound (below 6561).

        Raises:
            NumericsError: the model said nothing at all.
        """
        prompt = Prompt(text_tokens(self.tokenizer, text), voice.speaker, voice.prompt)

        def work(t3: nn.Module) -> list[int]:
            tokens = []
            for token in t3.generate(prompt, sampling, generator, self.step):  # type: ignore[operator]
                tokens.append(token)
                on_token(len(tokens))
            return tokens

        kept = [t for t in self._ladder.run("t3", work, generator) if t < SPEECH_TOKENS]
        if not kept:
            raise NumericsError(
                f"the model stopped at once and said nothing for {text[:40]!r}: try another --seed"
            )
        return torch.tensor(kept)

    def say(
        self, text: str, voice: Voice, sampling: Sampling, seed: int, on_token: OnToken
    ) -> Spoken:
        """Speak one normalised chunk.

        One generator serves the three stages in turn, as upstream's global one does.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        voice = voice.to(self.device)
        clock = [time.perf_counter()]
        tokens = self.speech_tokens(text, voice, sampling, generator, on_token)
        clock.append(time.perf_counter())
        rows = tokens[None].to(self.device)
        mel = self._ladder.run("flow", lambda flow: flow(rows, voice, generator), generator)
        clock.append(time.perf_counter())
        wave = self._ladder.run("vocoder", lambda hift: hift(mel, generator), generator)
        samples = wave.cpu().numpy()
        clock.append(time.perf_counter())
        spent = (after - before for before, after in zip(clock[:-1], clock[1:], strict=True))
        return Spoken(samples, len(tokens), dict(zip(STAGES, spent, strict=True)))


def text_tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    """Normalised text to int64 [T] (upstream tokenizer.py, EnTokenizer.encode)."""
    return torch.tensor(tokenizer.encode(text.replace(" ", "[SPACE]")).ids, dtype=torch.long)
