"""The three stages in a row: lines in, their sound out.

Knows the order of the stages and where each gets its inputs. Knows nothing of long texts, files
or profiles.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from chatterbox_opt.engine.decode import DecodeBackend, EagerBackend
from chatterbox_opt.engine.overlap import InlineRenderer, Made, Renderer, RenderJob
from chatterbox_opt.engine.sequence import (
    REQUEST_ERRORS,
    AudioOutput,
    ChunkRequest,
    NextChunk,
    TokenOutput,
    TokenResult,
)
from chatterbox_opt.engine.t3_runner import T3Runner
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.request import Wave
from chatterbox_opt.runtime.offload import NONE, StagePlacement
from chatterbox_opt.runtime.recovery import RecoveryPolicy

Result = TypeVar("Result")


class RunStage(Protocol):
    """How a stage is asked: ``RecoveryPolicy.run`` or ``RecoveryPolicy.try_once``."""

    def __call__(
        self,
        stage: str,
        work: Callable[[nn.Module], Result],
        generators: Sequence[torch.Generator],
    ) -> Result:
        """See there."""
        ...


class Pipeline:
    """Our own engine: t3, flow, vocoder."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        placement: StagePlacement,
        backend: DecodeBackend,
        group: int = 1,
        sound: Renderer | None = None,
    ) -> None:
        """Take over loaded stages.

        Args:
            placement: holds t3, flow and vocoder.
            backend: how T3's steps are run.
            group: lines that flow and vocoder work at together.
            sound: who lets them work when T3 has several lines at once; None is ``InlineRenderer``.
        """
        self.tokenizer = tokenizer
        self.placement = placement
        self.backend = backend
        self.group = group
        self.sound = sound or InlineRenderer()
        self.device = placement.device
        self.recovery = RecoveryPolicy(placement)

    def close(self) -> None:
        """Give the device's memory back."""
        with self.recovery.alone:  # a run that was left in the middle may be at work beside
            self.backend = EagerBackend()  # recordings hold memory of the device
            self.placement.close()

    def read(
        self, take: NextChunk, slots: int, most: int, *, guided: bool
    ) -> Iterator[list[TokenResult]]:
        """Run t3 on lines, ``slots`` at once; yield them as they end, ``most`` at a time.

        Args:
            take: asked whenever there is room; None if there is no line (for now).
            guided: some line may have a cfg_weight above 0.
        """
        reader = T3Runner(self.tokenizer, self.recovery, self.backend, slots, 2 if guided else 1)
        while ended := self._turn(reader, take, most):
            yield ended

    def _turn(self, reader: T3Runner, take: NextChunk, most: int) -> list[TokenResult]:
        ended = reader.turn(take, most)
        self.backend = reader.backend
        return ended

    def speak(
        self, take: NextChunk, slots: int = 1, *, guided: bool = True
    ) -> Iterator[tuple[ChunkRequest, AudioOutput | Exception]]:
        """Speak lines; yield each as it is ready, with its sound or the reason why there is none.

        One generator serves the three stages of a line in turn, as upstream's global one does.
        Arguments as ``read``. A line is taken when there is room for it, so with one slot the
        next is taken after the last was yielded. Where sound is made beside T3, lines are yielded
        when T3 has read the next group or has nothing left; then it asks for lines once more.

        Raises:
            Exception: a failure of no line; what was read until then is yielded first.
        """
        group = min(self.group, slots)
        rows_per_seq = 2 if guided else 1
        with self.sound.run(lambda: slots > 1 and self.placement.offload == NONE) as turns:
            reader = T3Runner(
                self.tokenizer, self.recovery, self.backend, slots, rows_per_seq, turns.rest
            )
            while True:
                start = time.perf_counter()
                try:
                    ended = self._turn(reader, take, group)
                except REQUEST_ERRORS:  # no line's: what is in work is finished first
                    yield from turns.next(())
                    raise
                spent = time.perf_counter() - start
                yield from (failed for failed in ended if not isinstance(failed, TokenOutput))
                if not ended and not turns.busy:
                    return
                # with nothing to give, what comes back may still be said again
                yield from turns.next(self._jobs(ended, spent))

    def codes(self, take: NextChunk) -> Iterator[tuple[ChunkRequest, AudioOutput | Exception]]:
        """As ``speak`` with one slot, but run only t3: what comes has codes and no wave."""
        for ended in self.read(take, 1, 1, guided=True):
            for read in ended:
                if not isinstance(read, TokenOutput):
                    yield read
                    continue
                codes = tuple(read.tokens.tolist())
                yield (
                    read.request,
                    AudioOutput(np.empty(0, np.float32), len(codes), {}, codes, read.truncated),
                )

    def _jobs(self, ended: Sequence[TokenResult], t3_seconds: float) -> list[RenderJob]:
        """A job for the lines that want as many steps, like lengths side by side."""
        whole = [read for read in ended if isinstance(read, TokenOutput)]
        whole.sort(key=lambda read: (read.request.sampling.cfm_steps, len(read.tokens)))
        alike = groupby(whole, key=lambda read: read.request.sampling.cfm_steps)
        return [self._job(list(reads), t3_seconds / len(ended)) for _, reads in alike]

    def _job(self, reads: Sequence[TokenOutput], t3_seconds: float) -> RenderJob:
        states = [read.generator.get_state() for read in reads]

        def whole() -> Iterator[Made]:
            _rewind(reads, states)  # an attempt may have drawn
            return self._sound(reads, t3_seconds)

        return RenderJob(lambda: self._attempt(reads, t3_seconds), whole)

    def _attempt(self, reads: Sequence[TokenOutput], t3_seconds: float) -> list[Made]:
        """Flow and vocoder as they are: all of it works in another thread too."""
        once, start = self.recovery.try_once, time.perf_counter()
        mels = self._mels(reads, once)
        drawn = time.perf_counter()
        waves = self._vocode(mels, reads, once)
        seconds = {"flow": drawn - start, "vocoder": time.perf_counter() - drawn}
        return _spoken(reads, waves, t3_seconds, seconds)

    def _sound(self, reads: Sequence[TokenOutput], t3_seconds: float) -> Iterator[Made]:
        """Flow and vocoder for lines that want as many steps; if they fail together, one by one."""
        states = [read.generator.get_state() for read in reads]
        try:
            waves, seconds = self._waves(reads)
        except REQUEST_ERRORS as error:
            if len(reads) == 1:
                yield reads[0].request, error
                return
            failed = True
        else:
            failed = False
        if failed:
            _rewind(reads, states)
            for read in reads:
                yield from self._sound([read], t3_seconds)
            return
        yield from _spoken(reads, waves, t3_seconds, seconds)

    def _waves(self, reads: Sequence[TokenOutput]) -> tuple[list[Wave], dict[str, float]]:
        states = [read.generator.get_state() for read in reads]
        start = time.perf_counter()
        mels = self._mels(reads, self.recovery.run)
        drawn = time.perf_counter()
        try:
            waves = self._vocode(mels, reads, self.recovery.run)
        except NumericsError:
            # the vocoder is float32: what it choked on came from the flow
            if not self.recovery.is_half("flow"):
                raise
            self.recovery.warn_once("vocoder choked on the flow's mel: flow again in float32")
            _rewind(reads, states)
            mels = self._mels(reads, functools.partial(self.recovery.run, wide=True))
            waves = self._vocode(mels, reads, self.recovery.run)
        return waves, {"flow": drawn - start, "vocoder": time.perf_counter() - drawn}

    def _mels(self, reads: Sequence[TokenOutput], ask: RunStage) -> list[Tensor]:
        tokens = [read.tokens.to(self.device) for read in reads]
        voices = [read.request.voice.to(self.device) for read in reads]
        generators = [read.generator for read in reads]
        steps = reads[0].request.sampling.cfm_steps
        return ask("flow", lambda flow: flow(tokens, voices, generators, steps), generators)

    def _vocode(
        self, mels: Sequence[Tensor], reads: Sequence[TokenOutput], ask: RunStage
    ) -> list[Wave]:
        generators = [read.generator for read in reads]
        waves: list[Tensor] = ask("vocoder", lambda hift: hift(mels, generators), generators)
        return [wave.cpu().numpy() for wave in waves]


def _rewind(reads: Sequence[TokenOutput], states: Sequence[Tensor]) -> None:
    """Have the lines' generators draw again what they drew since they had these states."""
    for read, state in zip(reads, states, strict=True):
        read.generator.set_state(state)


def _spoken(
    reads: Sequence[TokenOutput],
    waves: Sequence[Wave],
    t3_seconds: float,
    seconds: Mapping[str, float],
) -> list[Made]:
    """Lines and their sound, each with its share of the seconds."""
    spent = {"t3": t3_seconds} | {stage: s / len(reads) for stage, s in seconds.items()}
    made: list[Made] = []
    for read, wave in zip(reads, waves, strict=True):
        codes = tuple(read.tokens.tolist())
        made.append((read.request, AudioOutput(wave, len(codes), spent, codes, read.truncated)))
    return made
