"""The optimized backend: T3, flow and vocoder for the sequences that the scheduler admits.

Responsible for the order of the stages and for which sequences are rendered together. Not
responsible for requests (scheduler.py), for T3's slots (decoder.py), or for threads (renderer.py).
"""

from __future__ import annotations

import numpy as np
import torch

from chatterbox_opt.engine.decoding.decode import DecodeBackend, EagerBackend
from chatterbox_opt.engine.decoding.decoder import Decoder
from chatterbox_opt.engine.rendering.hops import DueHop, SequenceSound, hop_groups
from chatterbox_opt.engine.rendering.renderer import Renderer, StreamContext
from chatterbox_opt.engine.rendering.work import whole_groups
from chatterbox_opt.engine.sequence import Capacity, Sequence, Status
from chatterbox_opt.errors import DeviceError
from chatterbox_opt.runtime.offload import StagePlacement
from chatterbox_opt.runtime.recovery import RecoveryPolicy
from chatterbox_opt.text.tokenizers.loading import TextTokenizer


class Pipeline:
    """The optimized ``SpeechBackend``.

    Attributes:
        group: sequences that flow and vocoder render together, at most.
        device: of the stages.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        placement: StagePlacement,
        backend: DecodeBackend,
        group: int = 1,
        stream: StreamContext | None = None,
        silence: tuple[int, ...] = (),
    ) -> None:
        """Take over loaded stages.

        Args:
            placement: holds t3, flow and vocoder.
            stream: of the thread on which flow and vocoder overlap with T3; None is inline.
            silence: speech tokens that the flow gets after those of T3.
        """
        self.placement, self.device, self.group = placement, placement.device, group
        self.recovery = RecoveryPolicy(placement)
        self.renderer = Renderer(self.recovery, stream)
        self.decoder = Decoder(tokenizer, self.recovery, backend, self._release_memory)
        self._capacity, self._silence = Capacity(), silence
        self._decoded: list[Sequence] = []  # by T3, to be rendered
        self._ended: list[Sequence] = []  # by T3; their last parts are to be rendered
        self._sounds: dict[Sequence, SequenceSound] = {}  # of those that are given out in parts

    @property
    def idle(self) -> bool:
        rendered = not self._decoded and not self._ended and not self.renderer.busy
        return self.decoder.idle and rendered

    @property
    def empty(self) -> bool:
        return not self.decoder.running

    @property
    def free_slots(self) -> int:
        return self.decoder.slots - len(self.decoder.running)

    def open(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.decoder.open(capacity)

    def admit(self, sequence: Sequence) -> bool:
        schedule = sequence.request.hops
        if schedule is not None and sequence not in self._sounds:
            self._sounds[sequence] = SequenceSound.of(sequence, schedule, self._silence)
        if sequence.given_tokens:
            return self._admit_tokens(sequence)
        return self.decoder.admit(sequence)

    def _admit_tokens(self, sequence: Sequence) -> bool:
        """Let a sequence that needs no T3 wait to be rendered, unless two groups wait."""
        if len(self._decoded) >= 2 * self.group:
            return False
        sequence.tokens, sequence.status = list(sequence.given_tokens), Status.RENDERING
        sequence.generator = torch.Generator(self.device).manual_seed(sequence.seed)
        self._decoded.append(sequence)
        return True

    def step(self) -> list[Sequence]:
        """Decode up to the next readback; render a group when it is full or T3 has no more.

        With an overlapped renderer, a group is collected when the next one is full, or when T3 has
        nothing to do: independent of the threads' speed, so that retried sequences enter T3 at the
        same step in every run. With ``Capacity.group`` 1 somebody waits for the audio: whatever is
        decoded is rendered together as soon as the renderer is free, and collected at once; but see
        ``_more_end_soon``.
        Parts of sequences that are given out in parts are rendered when they can be, see
        ``_step_hops``.
        """
        done, idle = [], not self.decoder.running
        for sequence in self.decoder.step():
            if sequence.status is not Status.RENDERING:
                done.append(sequence)
            elif sequence.request.tokens_only:
                sequence.audio = np.empty(0, np.float32)
                done.append(sequence)
            elif sequence in self._sounds:
                self._ended.append(sequence)
            else:
                self._decoded.append(sequence)
        done += self._step_hops()
        at_once = self._capacity.group == 1
        group = min(self.group, self.decoder.slots)  # few slots are for want of memory
        if not at_once:
            group = min(group, self._capacity.group)
        complete = len(self._decoded) >= group
        if at_once and not self._more_end_soon:
            complete = self.renderer.ready
        if self._decoded and (complete or not self.decoder.running):
            decoded = _similar(self._decoded, group)
            self._decoded = [one for one in self._decoded if one not in decoded]
            self.decoder.leave()
            groups = whole_groups(decoded, self._silence)
            done += self.renderer.submit(groups, overlap=self._capacity.slots > 1)
        elif self.renderer.busy and (idle or (at_once and self.renderer.ready)):
            self.decoder.leave()
            done += self.renderer.collect()
        return done

    @property
    def _more_end_soon(self) -> bool:
        """Whether a group is worth waiting for, although somebody waits for the audio.

        On a CPU, where it is rendered in less time than its sequences one by one, and while most
        slots hold sequences for it: another one then ends within a few steps.
        """
        if self.device.type != "cpu":
            return False
        whole = sum(sequence not in self._sounds for sequence in self.decoder.running)
        return 2 * whole >= self.decoder.slots

    def _step_hops(self) -> list[Sequence]:
        """Render the hops that are needed first; return the sequences that left the backend.

        One group in a step, and T3 takes steps between groups: what is rendered is handed over at
        once, and on a CPU, where a group is one hop, many streams do not wait for each other.
        """
        done: list[Sequence] = []
        count = 1 if self.device.type == "cpu" else self.group
        due = sorted(self._due_hops(done), key=_needed)[:count]
        if not due:
            return done
        self.decoder.leave()
        is_last = {one.sequence: one.hop.is_last for one in due}
        for sequence in self.renderer.submit(hop_groups(due), overlap=False):
            if sequence not in is_last:  # a whole one, rendered meanwhile
                done.append(sequence)
            elif is_last[sequence] or sequence.error is not None:
                self.remove(sequence)
                done.append(sequence)
        return done

    def _due_hops(self, done: list[Sequence]) -> list[DueHop]:
        """The next hops that can be made; sequences without one for an error are ``done``."""
        due = []
        for sequence in [*self.decoder.running, *self._ended]:
            sound = self._sounds.get(sequence)
            if sound is None:
                continue
            try:
                hop = sound.next_hop(sequence.tokens, ended=sequence in self._ended)
            except DeviceError as error:
                sequence.fail(error)
                self.remove(sequence)
                done.append(sequence)
            else:
                due += [DueHop(sequence, sound, hop)] if hop else []
        return due

    def remove(self, sequence: Sequence) -> None:
        self.decoder.remove(sequence)
        self._sounds.pop(sequence, None)
        if sequence in self._ended:
            self._ended.remove(sequence)
        if sequence in self._decoded:
            self._decoded.remove(sequence)

    def release(self) -> None:
        self._decoded, self._ended = [], []
        self._sounds.clear()
        self.decoder.release()
        self.renderer.release()

    def close(self) -> None:
        self.release()
        self.decoder.backend = EagerBackend()  # captured graphs hold device memory
        self.decoder.forget_voices()
        self.placement.close()

    def _release_memory(self) -> bool:
        return self.renderer.release_memory()


def _similar(waiting: list[Sequence], count: int) -> list[Sequence]:
    """The first that waits, and those that are most like it in length: they end together."""
    first = waiting[0]
    by_length = sorted(waiting, key=lambda one: abs(len(one.tokens) - len(first.tokens)))
    return [first, *(one for one in by_length if one is not first)][:count]


def _needed(due: DueHop) -> tuple[float, int]:
    """Orders hops by when playback needs them: earliest deadline first."""
    return due.sequence.request.runs_dry, due.sequence.index
