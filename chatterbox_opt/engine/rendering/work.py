"""What the renderer runs: groups of sequences, and those that T3 has finished.

Responsible for what flow and vocoder get and where their results go. Not responsible for errors or
threads (renderer.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from chatterbox_opt.engine.rendering.stretch import stretched
from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.utils.wave import Wave


class RenderGroup(Protocol):
    """Sequences that are rendered together, each at most once, with equal numbers of flow steps.

    Attributes:
        sequences: that are rendered.
        generators: that ``flow`` and ``vocode`` draw from.
    """

    sequences: list[Sequence]
    generators: list[torch.Generator]

    def rewind(self) -> None:
        """Reset the generators, from which a failed try may have drawn."""
        ...

    def split(self) -> list[RenderGroup]:
        """A group for each sequence."""
        ...

    def flow(self, flow: Any, device: torch.device) -> list[Tensor]:
        """Run the flow: float32 [80, F_i] for each sequence."""
        ...

    def vocode(self, vocoder: Any, mels: list[Tensor]) -> Callable[[], None]:
        """Run the vocoder at the sequences' rates; the returned function stores the results."""
        ...


class WholeSequences:
    """Sequences that T3 has finished."""

    def __init__(
        self,
        sequences: list[Sequence],
        generators: list[torch.Generator],
        silence: tuple[int, ...] = (),
    ) -> None:
        """Remember the generators' states.

        Args:
            generators: of the sequences, which drop theirs if their request ends meanwhile.
            silence: speech tokens after those of T3.
        """
        self.sequences, self.generators, self._silence = sequences, generators, silence
        self._states = [generator.get_state() for generator in generators]

    def rewind(self) -> None:
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def split(self) -> list[RenderGroup]:
        pairs = zip(self.sequences, self.generators, strict=True)
        return [
            WholeSequences([sequence], [generator], self._silence) for sequence, generator in pairs
        ]

    def flow(self, flow: Any, device: torch.device) -> list[Tensor]:
        tokens = [
            torch.tensor(
                [*sequence.tokens, *(() if sequence.given_tokens else self._silence)],
                device=device,
            )
            for sequence in self.sequences
        ]
        voices = [sequence.voice.to(device) for sequence in self.sequences]
        mels: list[Tensor] = flow(
            tokens, voices, self.generators, self.sequences[0].sampling.cfm_steps
        )
        return mels

    def vocode(self, vocoder: Any, mels: list[Tensor]) -> Callable[[], None]:
        rates = [sequence.chunk.rate for sequence in self.sequences]
        mels = [stretched(mel, rate) for mel, rate in zip(mels, rates, strict=True)]
        waves: list[Tensor] = vocoder(mels, self.generators)
        audio: list[Wave] = [wave.cpu().numpy() for wave in waves]

        def finish() -> None:
            for sequence, wave in zip(self.sequences, audio, strict=True):
                sequence.audio = wave

        return finish


def whole_groups(sequences: list[Sequence], silence: tuple[int, ...] = ()) -> list[RenderGroup]:
    """One group per number of flow steps, its sequences sorted by length.

    Args:
        silence: speech tokens that the flow gets after those of T3 (``ModelConfig.silence``).
    """
    groups: list[RenderGroup] = []
    steps = operator.attrgetter("sampling.cfm_steps")
    ordered = sorted(sequences, key=lambda s: (steps(s), len(s.tokens)))
    for _, group in groupby(ordered, key=steps):
        together = list(group)
        generators = [sequence.generator for sequence in together if sequence.generator]
        groups.append(WholeSequences(together, generators, silence))
    return groups
