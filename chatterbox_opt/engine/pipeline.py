"""The three stages in order: chunk requests in, audio out.

Responsible for the order of the stages and the inputs of each. Not responsible for long texts,
files or profiles.
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

from chatterbox_opt.engine.backend import ONE_AT_A_TIME, BatchOptions
from chatterbox_opt.engine.decode import DecodeBackend, EagerBackend
from chatterbox_opt.engine.overlap import InlineRenderer, Renderer, RenderJob
from chatterbox_opt.engine.sequence import (
    REQUEST_ERRORS,
    AudioOutput,
    ChunkResult,
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
    """How a stage is called: ``RecoveryPolicy.run`` or ``RecoveryPolicy.try_once``."""

    def __call__(
        self,
        stage: str,
        work: Callable[[nn.Module], Result],
        generators: Sequence[torch.Generator],
    ) -> Result:
        """Run ``work`` with the stage's module."""
        ...


class Pipeline:
    """The optimized ``SpeechBackend``: t3, flow, vocoder.

    Attributes:
        backend: how T3's steps are run; replaced when a fallback is permanent.
        renderer: runs flow and vocoder when T3 has several sequences at once.
        group: sequences that flow and vocoder process together.
        device: of the stages.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        placement: StagePlacement,
        backend: DecodeBackend,
        group: int = 1,
        renderer: Renderer | None = None,
    ) -> None:
        """Take over loaded stages.

        Args:
            placement: holds t3, flow and vocoder.
            renderer: None is ``InlineRenderer``.
        """
        self.tokenizer = tokenizer
        self.placement = placement
        self.backend = backend
        self.group = group
        self.renderer = renderer or InlineRenderer()
        self.device = placement.device
        self.recovery = RecoveryPolicy(placement)

    def close(self) -> None:
        with self.recovery.lock:  # an abandoned run may still be rendering on its worker thread
            self.backend = EagerBackend()  # captured graphs hold device memory
            self.placement.close()

    def generate_tokens(
        self, next_chunk: NextChunk, options: BatchOptions, n_finished: int
    ) -> Iterator[list[TokenResult]]:
        """Run only t3; yield results ``n_finished`` at a time.

        Args:
            next_chunk: called whenever a slot is free; None if there is no request (for now).
        """
        runner = self._t3_runner(options)
        while finished := self._run_t3(runner, next_chunk, n_finished):
            yield finished

    def _t3_runner(
        self, options: BatchOptions, release_memory: Callable[[], bool] = lambda: False
    ) -> T3Runner:
        rows_per_seq = 2 if options.use_cfg else 1
        return T3Runner(
            self.tokenizer, self.recovery, self.backend, options.slots, rows_per_seq, release_memory
        )

    def _run_t3(
        self, runner: T3Runner, next_chunk: NextChunk, n_finished: int
    ) -> list[TokenResult]:
        finished = runner.run_until(next_chunk, n_finished)
        self.backend = runner.backend
        return finished

    def synthesize_chunks(
        self, next_chunk: NextChunk, options: BatchOptions = ONE_AT_A_TIME
    ) -> Iterator[ChunkResult]:
        """Synthesize requests; yield each as it is ready, with its audio or its error.

        One generator serves the three stages of a request in order, as upstream's global one does.
        A request is taken when a slot is free, so with one slot the next one is taken after the
        previous result was yielded. With an overlapped renderer, results are yielded when T3 has
        finished the next group or has no sequences left; then ``next_chunk`` is called once more.

        Raises:
            Exception: a failure that belongs to no request; what T3 has finished by then is
                rendered and yielded first.
        """
        group = min(self.group, options.slots)
        with self.renderer.run(
            lambda: options.slots > 1 and self.placement.offload == NONE
        ) as session:
            runner = self._t3_runner(options, session.release_memory)
            while True:
                start = time.perf_counter()
                try:
                    finished = self._run_t3(runner, next_chunk, group)
                except REQUEST_ERRORS:  # belongs to no request: collect finished work first
                    yield from session.submit(())
                    raise
                spent = time.perf_counter() - start
                yield from (failed for failed in finished if not isinstance(failed, TokenOutput))
                if not finished and not session.busy:
                    return
                # even without jobs: the results collected here may cause retries
                yield from session.submit(self._jobs(finished, spent))

    def codes(self, next_chunk: NextChunk) -> Iterator[ChunkResult]:
        """As ``synthesize_chunks`` with one slot, but only t3: results have codes and no wave."""
        for finished in self.generate_tokens(next_chunk, ONE_AT_A_TIME, 1):
            for result in finished:
                if not isinstance(result, TokenOutput):
                    yield result
                    continue
                codes = tuple(result.tokens.tolist())
                yield (
                    result.request,
                    AudioOutput(np.empty(0, np.float32), len(codes), {}, codes, result.truncated),
                )

    def _jobs(self, finished: Sequence[TokenResult], t3_seconds: float) -> list[RenderJob]:
        """One job per number of flow steps, its sequences sorted by length."""
        outputs = [result for result in finished if isinstance(result, TokenOutput)]
        outputs.sort(key=lambda output: (output.request.sampling.cfm_steps, len(output.tokens)))
        groups = groupby(outputs, key=lambda output: output.request.sampling.cfm_steps)
        return [self._job(list(group), t3_seconds / len(finished)) for _, group in groups]

    def _job(self, outputs: Sequence[TokenOutput], t3_seconds: float) -> RenderJob:
        states = [output.generator.get_state() for output in outputs]

        def run_with_recovery() -> Iterator[ChunkResult]:
            _restore_generators(outputs, states)  # a failed try may have drawn
            return self._render_with_recovery(outputs, t3_seconds)

        return RenderJob(lambda: self._try_render(outputs, t3_seconds), run_with_recovery)

    def _try_render(self, outputs: Sequence[TokenOutput], t3_seconds: float) -> list[ChunkResult]:
        """Run flow and vocoder without recovery: safe on the worker thread."""
        once, start = self.recovery.try_once, time.perf_counter()
        mels = self._mels(outputs, once)
        middle = time.perf_counter()
        waves = self._vocode(mels, outputs, once)
        seconds = {"flow": middle - start, "vocoder": time.perf_counter() - middle}
        return _audio_outputs(outputs, waves, t3_seconds, seconds)

    def _render_with_recovery(
        self, outputs: Sequence[TokenOutput], t3_seconds: float
    ) -> Iterator[ChunkResult]:
        """Run flow and vocoder for sequences of equal steps; if they fail together, one by one."""
        states = [output.generator.get_state() for output in outputs]
        try:
            waves, seconds = self._waves(outputs)
        except REQUEST_ERRORS as error:
            if len(outputs) == 1:
                yield outputs[0].request, error
                return
            failed = True
        else:
            failed = False
        if failed:
            _restore_generators(outputs, states)
            for output in outputs:
                yield from self._render_with_recovery([output], t3_seconds)
            return
        yield from _audio_outputs(outputs, waves, t3_seconds, seconds)

    def _waves(self, outputs: Sequence[TokenOutput]) -> tuple[list[Wave], dict[str, float]]:
        states = [output.generator.get_state() for output in outputs]
        start = time.perf_counter()
        mels = self._mels(outputs, self.recovery.run)
        middle = time.perf_counter()
        try:
            waves = self._vocode(mels, outputs, self.recovery.run)
        except NumericsError:
            # the vocoder is float32: the cause is the mel spectrogram of an fp16/bf16 flow
            if not self.recovery.reduced_precision("flow"):
                raise
            self.recovery.warn_once(
                "vocoder produced NaN or Inf from the flow's output: flow again in float32"
            )
            _restore_generators(outputs, states)
            mels = self._mels(outputs, functools.partial(self.recovery.run, float32=True))
            waves = self._vocode(mels, outputs, self.recovery.run)
        return waves, {"flow": middle - start, "vocoder": time.perf_counter() - middle}

    def _mels(self, outputs: Sequence[TokenOutput], run: RunStage) -> list[Tensor]:
        tokens = [output.tokens.to(self.device) for output in outputs]
        voices = [output.request.voice.to(self.device) for output in outputs]
        generators = [output.generator for output in outputs]
        steps = outputs[0].request.sampling.cfm_steps
        return run("flow", lambda flow: flow(tokens, voices, generators, steps), generators)

    def _vocode(
        self, mels: Sequence[Tensor], outputs: Sequence[TokenOutput], run: RunStage
    ) -> list[Wave]:
        generators = [output.generator for output in outputs]
        waves: list[Tensor] = run("vocoder", lambda hift: hift(mels, generators), generators)
        return [wave.cpu().numpy() for wave in waves]


def _restore_generators(outputs: Sequence[TokenOutput], states: Sequence[Tensor]) -> None:
    """Reset the sequences' generators, so that a retry draws the same numbers."""
    for output, state in zip(outputs, states, strict=True):
        output.generator.set_state(state)


def _audio_outputs(
    outputs: Sequence[TokenOutput],
    waves: Sequence[Wave],
    t3_seconds: float,
    seconds: Mapping[str, float],
) -> list[ChunkResult]:
    """Results with their audio, each with its share of the seconds."""
    share = {"t3": t3_seconds} | {stage: s / len(outputs) for stage, s in seconds.items()}
    results: list[ChunkResult] = []
    for output, wave in zip(outputs, waves, strict=True):
        codes = tuple(output.tokens.tolist())
        audio = AudioOutput(wave, len(codes), share, codes, output.truncated)
        results.append((output.request, audio))
    return results
