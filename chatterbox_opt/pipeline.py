"""The three stages in a row: one chunk in, its sound out.

Knows the order of the stages and where each gets its inputs. Knows nothing of long texts, files
or profiles.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from chatterbox_opt import graphs
from chatterbox_opt.errors import NumericsError, SilenceError
from chatterbox_opt.fallback import Ladder
from chatterbox_opt.offload import Residency
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.shapes import SPEECH_TOKENS
from chatterbox_opt.t3 import Prompt, Step
from chatterbox_opt.text import Chunk
from chatterbox_opt.voice import Voice

log = logging.getLogger(__name__)
OnToken = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One chunk's sound.

    Attributes:
        wave: float32 [n] in [-1, 1] at 24 kHz, without watermark.
        tokens: how many speech tokens it was made of.
        seconds: of work, by stage.
        codes: the speech tokens, where they are known (plain Chatterbox gives none out).
        cut: T3 came to its limit without a stop token.
    """

    wave: npt.NDArray[np.float32]
    tokens: int
    seconds: Mapping[str, float]
    codes: tuple[int, ...] = ()
    cut: bool = False


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
    ) -> tuple[Tensor, bool]:
        """Run t3 on one normalised chunk.

        Returns:
            int64 [T], only ids that are sound (below 6561), and whether the limit cut them off.

        Raises:
            SilenceError: the model said nothing at all.
        """
        prompt = Prompt(text_tokens(self.tokenizer, text), voice.speaker, voice.prompt)
        state = generator.get_state()

        def work(t3: nn.Module) -> list[int]:
            tokens = []
            for token in t3.generate(prompt, sampling, generator, self.step):  # type: ignore[operator]
                tokens.append(token)
                on_token(len(tokens))
            return tokens

        try:
            said = self._ladder.run("t3", work, generator)
        except graphs.FAILURES as error:
            if self.step is None:
                raise
            log.warning("%s", graphs.failure(error))
            self.step = None
            generator.set_state(state)
            said = self._ladder.run("t3", work, generator)
        kept = [t for t in said if t < SPEECH_TOKENS]
        if not kept:
            raise SilenceError(f"the model said nothing for {text[:40]!r}: try another --seed")
        bound = self.residency.module("t3").bound(sampling)  # type: ignore[operator]
        return torch.tensor(kept), len(said) >= bound

    def say(
        self, chunk: Chunk, voice: Voice, sampling: Sampling, seed: int, on_token: OnToken
    ) -> Spoken:
        """Speak one chunk.

        One generator serves the three stages in turn, as upstream's global one does.

        Raises:
            SilenceError, NumericsError, DeviceError: after all fallbacks.
        """
        generator = torch.Generator(self.device).manual_seed(seed)
        voice = voice.to(self.device)
        start = time.perf_counter()
        tokens, cut = self.speech_tokens(chunk.text, voice, sampling, generator, on_token)
        said = time.perf_counter()
        state = generator.get_state()
        steps = sampling.cfm_steps
        mel = self._mel(tokens, voice, generator, steps)
        drawn = time.perf_counter()
        try:
            wave = self._wave(mel, generator)
        except NumericsError:
            # the vocoder is float32: what it choked on came from the flow
            if not self._ladder.is_half("flow"):
                raise
            self._ladder.warn_once("vocoder choked on the flow's mel: flow again in float32")
            generator.set_state(state)
            wave = self._wave(self._mel(tokens, voice, generator, steps, wide=True), generator)
        spent = {"t3": said - start, "flow": drawn - said, "vocoder": time.perf_counter() - drawn}
        return Spoken(wave, len(tokens), spent, tuple(tokens.tolist()), cut)

    def _mel(
        self,
        tokens: Tensor,
        voice: Voice,
        generator: torch.Generator,
        steps: int,
        *,
        wide: bool = False,
    ) -> Tensor:
        rows = [tokens.to(self.device)]
        mels = self._ladder.run(
            "flow", lambda flow: flow(rows, [voice], [generator], steps), generator, wide=wide
        )
        mel: Tensor = mels[0]
        return mel

    def _wave(self, mel: Tensor, generator: torch.Generator) -> npt.NDArray[np.float32]:
        waves = self._ladder.run("vocoder", lambda hift: hift([mel], [generator]), generator)
        samples: npt.NDArray[np.float32] = waves[0].cpu().numpy()
        return samples


def text_tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    """Normalised text to int64 [T] (upstream tokenizer.py, EnTokenizer.encode)."""
    return torch.tensor(tokenizer.encode(text.replace(" ", "[SPACE]")).ids, dtype=torch.long)
