"""Random numbers of a sequence whose sound is made in parts.

Responsible for drawing them so that those of a frame are the same in every part that contains it,
whatever the parts. Not responsible for what they are used for.

A whole run draws [1, 80, F] for the flow: with another F nearly all numbers are others. Here they
are drawn frame by frame, in blocks of a fixed number of frames, because on a GPU the numbers depend
on how many are drawn at once. The generator is the stream's own: T3's goes on drawing tokens while
parts are made, and tokens must be those of a whole run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import MEL_BINS
from chatterbox_opt.models.vocoder.source import HOP_LENGTH, NUM_HARMONICS, random_phases

BLOCK = 32  # frames
_SALT = 0x5F3759DF9E3779B9  # makes the seed another than T3's


class HopNoise:
    """Noise of flow and vocoder for the frames of one sequence.

    Attributes:
        offsets: float32 [9], the random phases of the vocoder's harmonics.
    """

    def __init__(self, seed: int, prompt: int, device: torch.device) -> None:
        """Draw what does not depend on frames.

        Args:
            seed: of the sequence.
            prompt: mel frames of the voice's prompt.
        """
        self._generator = torch.Generator(device).manual_seed((seed ^ _SALT) % 2**63)
        self.offsets = random_phases(self._generator, device, 1)[0, :, 0]
        self._device = device
        self._flow = self._normal(prompt, MEL_BINS)
        self._prompt = prompt
        self._source: dict[int, Tensor] = {}  # by block; those before the last use are dropped
        self._blocks = 0

    def flow(self, frames: int) -> Tensor:
        """For the prompt and the first frames: float32 [prompt + frames, 80]."""
        self._draw(frames)
        return self._flow[: self._prompt + frames]

    def source(self, first: int, last: int) -> Tensor:
        """For frames first to last - 1: float32 [480 (last - first), 9]. Earlier ones are dropped.

        Raises:
            KeyError: they were dropped.
        """
        self._draw(last)
        begin = first // BLOCK
        for block in [block for block in self._source if block < begin]:
            del self._source[block]
        if first == last:  # a last part of no frames, perhaps at the end of all blocks
            return torch.empty(0, NUM_HARMONICS, device=self._device)
        blocks = [self._source[block] for block in range(begin, -(-last // BLOCK))]
        offset = begin * BLOCK
        return torch.cat(blocks)[(first - offset) * HOP_LENGTH : (last - offset) * HOP_LENGTH]

    def _draw(self, frames: int) -> None:
        new = []
        while self._blocks * BLOCK < frames:
            new.append(self._normal(BLOCK, MEL_BINS))
            self._source[self._blocks] = self._normal(BLOCK * HOP_LENGTH, NUM_HARMONICS)
            self._blocks += 1
        if new:
            self._flow = torch.cat((self._flow, *new))

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self._generator, device=self._device)
