"""Sound of sequences that T3 is still decoding: one hop after the other.

Responsible for what is kept of a sequence between two hops, and for one hop of several sequences.
Not responsible for when a hop is due (schedule.py), for recovery (renderer.py), or for the
watermark (audio/watermark.py).

A hop computes mel frames of a window (models/flow, ``Flow.extend``), gives out the new ones, and
keeps those of the tokens that were held back as the vocoder's context on the right. The vocoder
(``Vocoder.extend``) continues the waveform with the phase of its source. Nothing that was given out
is ever changed; so an attempt cannot be repeated with another seed once a part was given out, and a
sequence that is decoded again after an error of the device has to give the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import MEL_BINS, MEL_PER_TOKEN, SPEECH_TOKENS
from chatterbox_opt.engine.rendering.noise import HopNoise
from chatterbox_opt.engine.rendering.schedule import Hop, HopSchedule
from chatterbox_opt.engine.rendering.work import RenderGroup
from chatterbox_opt.engine.sequence import Part, Sequence
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.models.flow.model import FlowWindow
from chatterbox_opt.models.vocoder.model import FADE_LENGTH, fade_in
from chatterbox_opt.models.vocoder.source import (
    HOP_LENGTH,
    LEFT_FRAMES,
    SourceState,
    VocoderWindow,
)

FEW_STEPS_HOPS = 2  # hops with ``HopSchedule.first_steps``


@dataclass(slots=True, eq=False)
class SoundState:
    """What is kept of a sequence between two hops.

    Attributes:
        noise: its random numbers.
        source: state of the vocoder's source after the frames that were given out.
        mel: float32 [80, left], the last of these frames.
    """

    noise: HopNoise
    source: SourceState
    mel: Tensor

    @classmethod
    def start(cls, sequence: Sequence, device: torch.device) -> SoundState:
        """Before the first hop."""
        noise = HopNoise(sequence.seed, sequence.voice.mel.shape[1], device)
        empty = torch.empty(0, device=device)
        source = SourceState(noise.offsets, 0.0, empty)
        return cls(noise, source, torch.empty(MEL_BINS, 0, device=device))


@dataclass(slots=True, eq=False)
class SequenceSound:
    """The sound of a sequence that is given out in parts.

    Attributes:
        schedule: of its hops.
        given: the tokens that were given out.
        hops: number of hops that were made.
        state: None before the first.
    """

    schedule: HopSchedule
    given: list[int] = field(default_factory=list)
    hops: int = 0
    state: SoundState | None = None

    def next_hop(self, tokens: list[int], *, ended: bool) -> Hop | None:
        """The next hop, if it can be made.

        Args:
            tokens: of the sequence so far, without special ones.

        Raises:
            DeviceError: they are not those that were given out.
        """
        known = len(tokens)
        hop = self.schedule.next(self.hops, len(self.given), known, ended=ended)
        if (hop or ended) and tokens[: len(self.given)] != self.given:
            raise DeviceError(
                "after an error of the device the text was decoded again with other tokens, and a "
                "part of its sound is out already: try again"
            )
        return hop


class HopGroup:
    """A hop of each of several sequences."""

    def __init__(self, sequences: list[Sequence], hops: list[Hop]) -> None:
        self.sequences, self._hops = sequences, hops
        self.generators: list[torch.Generator] = []  # noise is drawn once and kept

    def rewind(self) -> None:
        """Nothing: random numbers are kept."""

    def split(self) -> list[RenderGroup]:
        pairs = zip(self.sequences, self._hops, strict=True)
        return [HopGroup([sequence], [hop]) for sequence, hop in pairs]

    def flow(self, flow: Any, device: torch.device) -> list[Tensor]:
        windows = []
        for sequence, hop in zip(self.sequences, self._hops, strict=True):
            sound = _sound(sequence)
            if sound.state is None:
                sound.state = SoundState.start(sequence, device)
            tokens = torch.tensor(_speech(sequence.tokens)[: hop.total], device=device)
            noise = sound.state.noise.flow(MEL_PER_TOKEN * hop.total)
            windows.append(FlowWindow(tokens, sequence.voice.to(device), noise, hop.first))
        mels: list[Tensor] = flow.extend(windows, _steps(self.sequences[0], self._hops[0]))
        return mels

    def vocode(self, vocoder: Any, mels: list[Tensor]) -> Callable[[], None]:
        # 1) the frames after those that were given out, behind the last of these
        windows, fresh = [], []
        for sequence, hop, mel in zip(self.sequences, self._hops, mels, strict=True):
            state = _sound(sequence).state
            assert state is not None
            fresh.append(mel[:, hop.context_frames :])
            first = MEL_PER_TOKEN * hop.given
            noise = state.noise.source(first, first + fresh[-1].shape[1])
            whole = torch.cat((state.mel, fresh[-1]), dim=1)
            windows.append(VocoderWindow(whole, hop.new_frames, state.source, noise))
        extended = vocoder.extend(windows)
        waves = [wave.cpu() for wave, _ in extended]

        # 2) only when all has succeeded
        def finish() -> None:
            for i, (sequence, hop) in enumerate(zip(self.sequences, self._hops, strict=True)):
                _give_out(sequence, hop, fresh[i], extended[i][1], waves[i])

        return finish


def hop_groups(pairs: list[tuple[Sequence, Hop]]) -> list[RenderGroup]:
    """One group per number of flow steps."""

    def steps(pair: tuple[Sequence, Hop]) -> int:
        return _steps(*pair)

    groups: list[RenderGroup] = []
    for _, group in groupby(sorted(pairs, key=steps), key=steps):
        sequences, hops = zip(*group, strict=True)
        groups.append(HopGroup(list(sequences), list(hops)))
    return groups


def next_hop(sequence: Sequence, *, ended: bool) -> Hop | None:
    """The next hop of a sequence that is given out in parts. Raises as ``SequenceSound``."""
    return _sound(sequence).next_hop(_speech(sequence.tokens), ended=ended)


def _give_out(sequence: Sequence, hop: Hop, mel: Tensor, source: SourceState, wave: Tensor) -> None:
    """Note what was rendered, and append the part to the request's."""
    sound = _sound(sequence)
    state = sound.state
    assert state is not None
    new = mel[:, : hop.new_frames]
    state.mel = torch.cat((state.mel, new), dim=1)[:, -LEFT_FRAMES:].clone()
    state.source = source
    sound.given = _speech(sequence.tokens)[: hop.end]
    sound.hops += 1
    samples = wave.numpy()
    if not hop.number:  # the voice's prompt leaks into the first 40 ms
        samples[: 2 * FADE_LENGTH] *= fade_in(wave.device).numpy()
    cut = hop.new_frames * HOP_LENGTH
    part = Part(
        sequence, hop.number, samples[:cut], samples[cut:], hop.end - hop.given, hop.is_last
    )
    sequence.request.parts.append(part)


def _sound(sequence: Sequence) -> SequenceSound:
    assert sequence.sound is not None
    return sequence.sound


def _speech(tokens: list[int]) -> list[int]:
    """Tokens that the flow can render; special ones are dropped, as at a sequence's end."""
    return [token for token in tokens if token < SPEECH_TOKENS]


def _steps(sequence: Sequence, hop: Hop) -> int:
    """Euler steps of the flow."""
    first, steps = _sound(sequence).schedule.first_steps, sequence.sampling.cfm_steps
    return min(first, steps) if first and hop.number < FEW_STEPS_HOPS else steps
