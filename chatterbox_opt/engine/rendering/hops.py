"""Sound of sequences that T3 is still decoding: one hop after the other.

Responsible for what is kept of a sequence between two hops, and for one hop of several sequences.
Not responsible for when a hop is due (schedule.py), for recovery (renderer.py), or for the
watermark (audio/watermark.py).

A hop computes mel frames of a window (models/flow, ``Flow.extend``), gives out the new ones at the
rate of the sequence (stretch.py), and keeps those of the tokens that were held back as the
vocoder's context on the right. The vocoder (``Vocoder.extend``) continues the waveform with the
phase of its source. The first new frames fade in from those provisional ones, with which the end of
the part before was vocoded: otherwise the waveform jumps at the seam. Nothing that was given out is
ever changed; so an attempt cannot be repeated with another seed once a part was given out, and a
sequence that is decoded again after an error of the device has to give the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.config.hop_schedule import Hop, HopSchedule
from chatterbox_opt.config.model_config import MEL_BINS, MEL_PER_TOKEN, SPEECH_TOKENS
from chatterbox_opt.engine.rendering.noise import HopNoise
from chatterbox_opt.engine.rendering.stretch import num_frames, stretched_part
from chatterbox_opt.engine.rendering.work import RenderGroup
from chatterbox_opt.engine.sequence import Part, Sequence
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.models.flow.model import FlowWindow
from chatterbox_opt.models.vocoder.model import FADE_LENGTH, fade_in
from chatterbox_opt.models.vocoder.source import (
    HOP_LENGTH,
    LEFT_FRAMES,
    RIGHT_FRAMES,
    SourceState,
    VocoderWindow,
)

BLEND_FRAMES = 4  # over which provisional frames become final


@dataclass(slots=True, eq=False)
class SoundState:
    """What is kept of a sequence between two hops.

    Attributes:
        noise: its random numbers.
        source: state of the vocoder's source after the frames that were given out.
        mel: float32 [80, left], the last of these frames, as they were given out.
        edge: float32 [80, 1], the last of them as the flow made it; empty before the first hop.
        provisional: float32 [80, n], the first frames after them, as they were held back.
    """

    noise: HopNoise
    source: SourceState
    mel: Tensor
    edge: Tensor
    provisional: Tensor

    @classmethod
    def start(cls, sequence: Sequence, device: torch.device) -> SoundState:
        """Before the first hop."""
        noise = HopNoise(sequence.seed, sequence.voice.mel.shape[1], device)
        empty = torch.empty(0, device=device)
        source = SourceState(noise.offsets, 0.0, empty)
        no_mel = torch.empty(MEL_BINS, 0, device=device)
        return cls(noise, source, no_mel, no_mel, no_mel)


@dataclass(slots=True, eq=False)
class SequenceSound:
    """The sound of a sequence that is given out in parts.

    Attributes:
        schedule: of its hops.
        silence: speech tokens after those of T3 (``ModelConfig.silence``), part of the last hop.
        given: the tokens that were given out.
        hops: number of hops that were made.
        state: None before the first.
    """

    schedule: HopSchedule
    silence: tuple[int, ...] = ()
    given: list[int] = field(default_factory=list)
    hops: int = 0
    state: SoundState | None = None

    @classmethod
    def of(
        cls, sequence: Sequence, schedule: HopSchedule, silence: tuple[int, ...]
    ) -> SequenceSound:
        """Before the first hop. At a high rate more tokens are held back, so that the vocoder has
        the frames after a part that it needs."""
        rate = sequence.chunk.rate
        if rate != 1:
            needed = math.ceil(RIGHT_FRAMES * rate / MEL_PER_TOKEN) + 1
            schedule = replace(schedule, held_back=max(schedule.held_back, needed))
        return cls(schedule, silence)

    def next_hop(self, tokens: list[int], *, ended: bool) -> Hop | None:
        """The next hop, if it can be made.

        Args:
            tokens: of the sequence so far.

        Raises:
            DeviceError: they are not those that were given out.
        """
        number, given = self.hops, len(self.given)
        if not self.schedule.next(number, given, len(tokens), ended=ended):
            return None  # nor with fewer: asked at every step, before special ones are dropped
        tokens = self.rendered(tokens) if ended else speech(tokens)
        hop = self.schedule.next(number, given, len(tokens), ended=ended)
        if (hop or ended) and tokens[: len(self.given)] != self.given:
            raise DeviceError(
                "after an error of the device the text was decoded again with other tokens, and a "
                "part of its sound is out already: try again"
            )
        return hop

    def rendered(self, tokens: list[int]) -> list[int]:
        """What the flow gets in the end, of the tokens so far."""
        return [*speech(tokens), *self.silence]


@dataclass(frozen=True, slots=True)
class DueHop:
    """A hop of a sequence, which can be made now."""

    sequence: Sequence
    sound: SequenceSound
    hop: Hop

    @property
    def steps(self) -> int:
        """Euler steps of the flow."""
        return self.sound.schedule.steps(self.hop, self.sequence.sampling.cfm_steps)

    @property
    def frames(self) -> tuple[int, int, int]:
        """Frames, at the sequence's rate, of the tokens that were given out, that will be given out
        after this hop, and that it renders."""
        hop, rate = self.hop, self.sequence.chunk.rate
        given, end, total = (MEL_PER_TOKEN * count for count in (hop.given, hop.end, hop.total))
        return (
            num_frames(given, rate, ended=False),
            num_frames(end, rate, ended=hop.is_last),
            num_frames(total, rate, ended=hop.is_last),
        )

    def mel(self, flow_mel: Tensor) -> Tensor:
        """The new frames and those that the vocoder needs after them, at the sequence's rate.

        Args:
            flow_mel: float32 [80, n], all frames behind those that were given out.
        """
        state = self.sound.state
        assert state is not None
        given, end, total = self.frames
        offset = MEL_PER_TOKEN * self.hop.given - state.edge.shape[1]
        mel = torch.cat((state.edge, flow_mel), dim=1)
        last = min(end + RIGHT_FRAMES, total)
        return stretched_part(mel, offset, self.sequence.chunk.rate, given, last)


class HopGroup:
    """A hop of each of several sequences."""

    def __init__(self, due: list[DueHop]) -> None:
        self._due = due
        self.sequences = [one.sequence for one in due]
        self.generators: list[torch.Generator] = []  # noise is drawn once and kept

    def rewind(self) -> None:
        """Nothing: random numbers are kept."""

    def split(self) -> list[RenderGroup]:
        return [HopGroup([one]) for one in self._due]

    def flow(self, flow: Any, device: torch.device) -> list[Tensor]:
        windows = []
        for one in self._due:
            sequence, total = one.sequence, one.hop.total
            if one.sound.state is None:
                one.sound.state = SoundState.start(sequence, device)
            tokens = torch.tensor(one.sound.rendered(sequence.tokens)[:total], device=device)
            noise = one.sound.state.noise.flow(MEL_PER_TOKEN * total)
            windows.append(FlowWindow(tokens, sequence.voice.to(device), noise, one.hop.first))
        mels: list[Tensor] = flow.extend(windows, self._due[0].steps)
        return mels

    def vocode(self, vocoder: Any, mels: list[Tensor]) -> Callable[[], None]:
        # 1) the frames after those that were given out, behind the last of these
        windows, fresh = [], []
        for one, mel in zip(self._due, mels, strict=True):
            state = one.sound.state
            assert state is not None
            fresh.append(_blended(state.provisional, mel[:, one.hop.context_frames :]))
            heard = one.mel(fresh[-1])
            given, end, _ = one.frames
            noise = state.noise.source(given, given + heard.shape[1])
            whole = torch.cat((state.mel, heard), dim=1)
            windows.append(VocoderWindow(whole, end - given, state.source, noise))
        extended = [(wave.cpu(), source) for wave, source in vocoder.extend(windows)]

        # 2) only when all has succeeded
        def finish() -> None:
            for given_out in zip(self._due, fresh, windows, extended, strict=True):
                _give_out(*given_out)

        return finish


def hop_groups(due: list[DueHop]) -> list[RenderGroup]:
    """One group per number of flow steps."""

    def steps(one: DueHop) -> int:
        return one.steps

    return [HopGroup(list(group)) for _, group in groupby(sorted(due, key=steps), key=steps)]


def _blended(provisional: Tensor, mel: Tensor) -> Tensor:
    """``mel``, its first frames faded in from the provisional ones: float32 [80, n]."""
    frames = min(provisional.shape[1], mel.shape[1])
    weights = torch.arange(1, frames + 1, device=mel.device) / (frames + 1)
    first = torch.lerp(provisional[:, :frames], mel[:, :frames], weights)
    return torch.cat((first, mel[:, frames:]), dim=1)


def _give_out(
    due: DueHop, mel: Tensor, window: VocoderWindow, extended: tuple[Tensor, SourceState]
) -> None:
    """Note what was rendered, and append the part to the request's.

    Args:
        mel: float32 [80, n], of the flow, behind the frames that were given out.
        window, extended: what the vocoder got, and what it made of it.
    """
    sequence, sound, hop, state = due.sequence, due.sound, due.hop, due.sound.state
    assert state is not None
    wave, state.source = extended
    state.mel = window.mel[:, : window.left + window.new][:, -LEFT_FRAMES:].clone()
    state.edge = mel[:, : hop.new_frames][:, -1:].clone()
    state.provisional = mel[:, hop.new_frames :][:, :BLEND_FRAMES].clone()
    sound.given = sound.rendered(sequence.tokens)[: hop.end]
    sound.hops += 1
    samples = wave.numpy()
    if not hop.number:  # the voice's prompt leaks into the first 40 ms
        samples[: 2 * FADE_LENGTH] *= fade_in(wave.device).numpy()
    cut = window.new * HOP_LENGTH
    count = len(speech(sequence.tokens))  # without the silence
    tokens = min(hop.end, count) - min(hop.given, count)
    sequence.request.parts.append(
        Part(sequence, hop.number, samples[:cut], samples[cut:], tokens, hop.is_last)
    )


def speech(tokens: list[int]) -> list[int]:
    """Tokens that the flow can render; special ones are dropped, as at a sequence's end."""
    return [token for token in tokens if token < SPEECH_TOKENS]
