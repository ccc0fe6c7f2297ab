"""Runs T3 for the sequences in its slots, and recovers from errors of its steps.

    error                             action                                            then
    out of device memory              stop overlapping; half as many slots; offload     again
      nothing left to offload         fail this sequence with DeviceError
    a fused or compiled step that
      cannot be compiled or launched  eager steps for good                              again
      fails with these sequences      these with eager steps (``DecodeMode.EAGER``);    again
                                      after ``MAX_STEP_FAILURES`` in a row all for a
                                      while (backoff.py)
    another error with several        each alone (``ALONE``), to find the one that      again
      sequences                       fails
    another error with one sequence   fail this sequence
    NaN/Inf in fp16/bf16              this sequence in float32 (``FLOAT32``)            again
    NaN/Inf in float32                fail this sequence with NumericsError

"Again" is from the start of the attempt: the same seed gives the same tokens. An error of a
prefill, other than out of memory, fails the sequence that was prefilled and concerns no other.
Fewer slots are used until the engine is idle; whatever else is given up is given up for good. All
sequences in the slots have the same mode: one with another mode waits until the slots are empty.

Responsible for slots, modes and the table above. Not responsible for which sequence comes next
(scheduler.py), for audio, or for retries of bad output (retries.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import cast

import torch

from chatterbox_opt.config.model_config import SPEECH_TOKENS
from chatterbox_opt.engine.decoding.alignment import align
from chatterbox_opt.engine.decoding.decode import DecodeBackend, DecodeBatch, EagerBackend
from chatterbox_opt.engine.decoding.prompts import prompt_of
from chatterbox_opt.engine.sequence import REQUEST_ERRORS, Capacity, DecodeMode, Sequence, Status
from chatterbox_opt.errors import DeviceError, NumericsError, SilenceError, first_line
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.runtime import backoff
from chatterbox_opt.runtime.cuda import is_out_of_memory
from chatterbox_opt.runtime.cuda_graphs import eager_for_a_while, eager_from_now_on
from chatterbox_opt.runtime.offload import NONE
from chatterbox_opt.runtime.recovery import RecoveryPolicy, in_float32, is_setup_error
from chatterbox_opt.text.tokenizers.loading import TextTokenizer

log = logging.getLogger(__name__)
MAX_STEP_FAILURES = 3  # consecutive failures after which a fused or compiled step is left alone


class Decoder:
    """The t3 stage.

    Attributes:
        backend: how steps are run; replaced if the fused or compiled step cannot be set up.
        step_failures: of the fused or compiled step since it last succeeded.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        recovery: RecoveryPolicy,
        backend: DecodeBackend,
        release_memory: Callable[[], bool],
    ) -> None:
        """Start without slots.

        Args:
            release_memory: stops other work on the device; returns whether there was any.
        """
        self.tokenizer, self.backend, self.step_failures = tokenizer, backend, 0
        self._recovery, self._release_memory = recovery, release_memory
        self._capacity, self._max_slots, self._eager_slots = Capacity(), 0, 1
        self._eager_sequences = 0  # decoded with eager steps before ``backend`` is tried again
        self._eager = EagerBackend(kv_cache=backend.kv_cache)
        self._batch: DecodeBatch | None = None
        self._mode = DecodeMode.BATCHED
        self._t3: T3 | None = None  # while it is on the device, by ``_residence``
        self._residence = ExitStack()
        self._out: list[Sequence] = []

    @property
    def running(self) -> list[Sequence]:
        """The sequences in the slots."""
        return self._batch.running if self._batch is not None else []

    @property
    def idle(self) -> bool:
        """Whether ``step`` has nothing to do or to return."""
        return not (self.running or self._out)

    @property
    def slots(self) -> int:
        """How many sequences may be decoded at once."""
        return min(self._capacity.slots, self._max_slots or self._capacity.slots)

    def open(self, capacity: Capacity) -> None:
        """Set the capacity, while no sequence is running."""
        if capacity != self._capacity:
            self._capacity = capacity
            self._batch = None

    def admit(self, sequence: Sequence) -> bool:
        """Prefill a sequence into a free slot, unless there is none for it now.

        Its error, if it has one, is returned by ``step`` like an ended sequence.
        """
        if self.running and not self._fits(sequence):
            return False
        start = time.perf_counter()
        try:
            sequence.prompt, sequence.generator = self._prompt(sequence)
            self._batch_for(sequence).add(sequence)
        except REQUEST_ERRORS as error:
            if is_out_of_memory(error):
                self._on_out_of_memory(error, [*self.running, sequence])
            else:
                self._fail([sequence], error)
        sequence.add_seconds("t3", time.perf_counter() - start)
        return True

    def _prompt(self, sequence: Sequence) -> tuple[Prompt, torch.Generator]:
        device = self._recovery.placement.device
        generator = torch.Generator(device).manual_seed(sequence.seed)
        return prompt_of(sequence, self.tokenizer, device), generator

    def step(self) -> list[Sequence]:
        """Decode up to the next readback.

        Returns:
            the sequences that left the slots, by status: RENDERING with tokens, FAILED with an
            error, WAITING to be decoded again.
        """
        batch = self._batch
        if batch is not None and batch.running:
            running, start = list(batch.running), time.perf_counter()
            ended: list[Sequence] = []
            try:
                self._enter()
                ended = batch.step()
            except REQUEST_ERRORS as error:
                self._on_error(error, running, batch.backend)
            for sequence in ended:
                self._on_ended(sequence)
            share = (time.perf_counter() - start) / len(running)
            for sequence in running:
                sequence.add_seconds("t3", share)
            for sequence in ended:
                if sequence.status is Status.RENDERING and sequence.request.alignment_heads:
                    self._align(sequence)
            if self._mode is DecodeMode.FLOAT32 and not batch.running:
                self._drop_batch()  # back to the precision of the plan
        out, self._out = self._out, []
        return out

    def remove(self, sequence: Sequence) -> None:
        """Free the slot of a sequence; does nothing if it has none."""
        if self._batch is not None and sequence in self._batch.running:
            self._batch.remove(sequence)

    def leave(self) -> None:
        """Let T3 leave the device while other stages run; the KV cache stays."""
        if self._recovery.placement.offload != NONE:
            self.forget_voices()  # other stages need the memory
        self._t3 = None
        self._residence.close()

    def forget_voices(self) -> None:
        """Free the keys and values of voices; those that are used again are computed again."""
        placement = self._recovery.placement
        if "t3" in placement.stages:
            cast(T3, placement.module("t3")).kept.clear()

    def release(self) -> None:
        """Free the slots; running sequences are dropped."""
        self._drop_batch()
        self._out, self._max_slots = [], 0

    def _fits(self, sequence: Sequence) -> bool:
        assert self._batch is not None
        return (
            not self._batch.full
            and self._is_for(sequence, self._batch)
            and self._batch.has_rows_for(sequence)
        )

    def _batch_for(self, sequence: Sequence) -> DecodeBatch:
        """The slots; allocated anew if there are none, or none for the mode or the backend."""
        if self._batch is None or not self._is_for(sequence, self._batch):
            self._drop_batch()
            self._mode = sequence.mode
            t3, backend = self._enter(), self._backend_for(sequence.mode)
            rows = t3.config.rows_per_seq if self._capacity.use_cfg else 1
            state = backend.slots(t3, self._mode_slots(), rows)
            self._batch = DecodeBatch(t3, state, backend)
        self._enter()
        if self._batch.backend is self._eager:
            self._eager_sequences = max(0, self._eager_sequences - 1)
        return self._batch

    def _is_for(self, sequence: Sequence, batch: DecodeBatch) -> bool:
        """Whether a sequence's steps are run like those of the slots."""
        if sequence.mode is not self._mode:
            return False
        return self._mode is not DecodeMode.BATCHED or batch.backend is self._batched_backend()

    def _batched_backend(self) -> DecodeBackend:
        return self._eager if self._eager_sequences else self.backend

    def _backend_for(self, mode: DecodeMode) -> DecodeBackend:
        if mode is DecodeMode.BATCHED:
            return self._batched_backend()
        full = mode is DecodeMode.FLOAT32
        return EagerBackend(kv_cache=None if full else self.backend.kv_cache)

    def _mode_slots(self) -> int:
        """The number of slots in the present mode."""
        if self._mode is DecodeMode.BATCHED:
            return self.slots
        if self._mode is DecodeMode.EAGER:  # allocated next to those of the plan's backend
            return min(self.slots, self._eager_slots)
        return 1

    def _enter(self) -> T3:
        """T3, on the device and in the precision of the mode until ``leave``."""
        if self._t3 is None:
            placement = self._recovery.placement
            self._t3 = cast(T3, self._residence.enter_context(placement("t3")))
            if self._mode is DecodeMode.FLOAT32:
                self._residence.enter_context(in_float32(self._t3))
            if self._batch is not None:
                self._batch.weights_moved()
        return self._t3

    def _drop_batch(self) -> None:
        self._batch = None
        self.leave()

    def _align(self, sequence: Sequence) -> None:
        """Find out when the words of a sequence that has ended are heard."""
        start = time.perf_counter()
        try:
            sequence.spans = align(self._enter(), sequence, self.tokenizer.space)
        except REQUEST_ERRORS as error:
            self._out.remove(sequence)
            if is_out_of_memory(error):
                self._on_out_of_memory(error, [*self.running, sequence])
            elif isinstance(error, NumericsError) and self._enter().dtype != torch.float32:
                self._again([sequence], DecodeMode.FLOAT32)
            else:
                self._fail([sequence], error)
        sequence.add_seconds("alignment", time.perf_counter() - start)

    # --- the recovery table -------------------------------------------------------------------

    def _on_out_of_memory(self, error: Exception, running: list[Sequence]) -> None:
        """Free memory; all sequences start again."""
        error.__traceback__ = None  # its frames hold references to tensors
        self._drop_batch()
        self.forget_voices()
        self.backend.release_slots()
        overlapped = self._release_memory()
        self._recovery.release_memory()
        if overlapped:
            pass
        elif self._mode_slots() > 1:
            self._max_slots = self.slots // 2
            log.warning("t3 ran out of memory: it continues with %d slots", self._max_slots)
        else:
            try:
                self._recovery.out_of_memory("t3", error)
            except DeviceError as final:
                self._fail(running, final)
                return
        self._again(running)

    def _on_error(self, error: Exception, failed: list[Sequence], backend: DecodeBackend) -> None:
        """Retry sequences whose step failed, in another mode or memory, or fail a single one."""
        if is_out_of_memory(error):
            self._on_out_of_memory(error, failed)
            return
        self._drop_batch()
        mode = failed[0].mode
        if mode is DecodeMode.BATCHED and (backend.forward is not None or backend.fused):
            self._eager_slots = len(failed)
            self._again(failed, self._on_step_failure(error))
            return
        if mode is DecodeMode.EAGER:  # caused by a sequence, not by the fused or compiled step
            self.step_failures = max(0, self.step_failures - 1)
        if len(failed) > 1:
            self._again(failed, DecodeMode.ALONE)
        else:
            self._fail(failed, error)

    def _on_step_failure(self, error: Exception) -> DecodeMode:
        """Fall back to eager steps: for good, for a while, or for these sequences only."""
        if is_setup_error(error):
            failure = "compilation of the t3 step failed"
            log.warning("%s", eager_from_now_on(failure, error))
            self.step_failures, self.backend = 0, self._eager
            return DecodeMode.BATCHED
        self.step_failures += 1
        if self.step_failures < MAX_STEP_FAILURES:
            self._recovery.warn_once(f"the t3 step failed ({first_line(error)}); retrying eagerly")
            return DecodeMode.EAGER
        more = self.step_failures - MAX_STEP_FAILURES
        if not more:
            failure = f"the t3 step failed {MAX_STEP_FAILURES} times in a row"
            log.warning("%s", eager_for_a_while(failure, error))
        self._eager_sequences = backoff.uses_after(more + 1)
        self.backend.release_slots()  # its memory is for the eager steps
        return DecodeMode.BATCHED

    def _on_ended(self, sequence: Sequence) -> None:
        """Check what a sequence has decoded."""
        error = sequence.error
        assert self._batch is not None
        is_eager = self._batch.backend is self._eager
        if error is None and sequence.mode is DecodeMode.BATCHED and not is_eager:
            self.step_failures = 0
        if isinstance(error, NumericsError):
            assert self._t3 is not None
            if self._t3.dtype != torch.float32:
                self._recovery.warn_once("t3 produced NaN or Inf: running it again in float32")
                self._again([sequence], DecodeMode.FLOAT32)
                return
            remedy = "in float32: the weights may be damaged, get them again"
            error = NumericsError(f"{error}, {remedy}")
        sequence.tokens = [token for token in sequence.tokens if token < SPEECH_TOKENS]
        if error is None and not sequence.tokens:
            text = sequence.chunk.text[:40]
            error = SilenceError(f"the model generated no speech for {text!r}: try another --seed")
        if error is not None:
            self._fail([sequence], error)
            return
        sequence.status = Status.RENDERING
        self._out.append(sequence)

    def _again(self, sequences: Iterable[Sequence], mode: DecodeMode | None = None) -> None:
        for sequence in sequences:
            sequence.restart(mode)
            self._out.append(sequence)

    def _fail(self, sequences: Iterable[Sequence], error: Exception) -> None:
        for sequence in sequences:
            sequence.fail(error)
            self._out.append(sequence)
