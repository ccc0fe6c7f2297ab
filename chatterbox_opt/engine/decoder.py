"""Runs the T3 stage over a stream of requests and recovers from OOM, NaN and failing steps.

    out of device memory          -> stop overlapping, then half as many slots, then offload,
                                     then DeviceError
    a fused or compiled step that
      cannot be compiled/launched -> eager steps permanently
      fails with these requests   -> these requests again with eager steps; permanently after
                                     ``MAX_STEP_FAILURES`` in a row
    NaN/Inf in fp16/bf16          -> that request again in float32 -> NumericsError
    other errors in a batch       -> its requests one by one, to find the one that fails

Responsible for decoding requests and for the fallbacks above. Not responsible for audio, whole
texts, or retries of bad output (retries.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

import torch
from tokenizers import Tokenizer
from torch import Tensor

from chatterbox_opt.config.model_config import SPEECH_TOKENS
from chatterbox_opt.engine.decode import DecodeBackend, EagerBackend, decode
from chatterbox_opt.engine.sequence import (
    REQUEST_ERRORS,
    ChunkRequest,
    NextChunk,
    TokenOutput,
    TokenResult,
)
from chatterbox_opt.errors import DeviceError, NumericsError, SilenceError, first_line
from chatterbox_opt.models.t3.decode_state import DecodeOutput, DecodeRequest
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.runtime.cuda_graphs import eager_from_now_on
from chatterbox_opt.runtime.recovery import RecoveryPolicy, in_float32, is_setup_error

log = logging.getLogger(__name__)
MAX_STEP_FAILURES = 3  # consecutive failures after which a fused or compiled step is replaced


class T3Runner:
    """The t3 stage for one run over requests.

    Attributes:
        backend: how steps are run; replaced when a fallback is permanent.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        recovery: RecoveryPolicy,
        backend: DecodeBackend,
        slots: int,
        rows_per_seq: int,
        release_memory: Callable[[], bool],
    ) -> None:
        """Prepare for ``slots`` sequences at once.

        Args:
            rows_per_seq: 2, or 1 if no request uses classifier-free guidance.
            release_memory: stops other work on the device; returns whether there was any.
        """
        self._tokenizer, self.recovery = tokenizer, recovery
        self._release_memory = release_memory
        self.backend, self._slots, self._rows_per_seq = backend, slots, rows_per_seq
        self._running: dict[DecodeRequest, ChunkRequest] = {}
        self._retries: deque[ChunkRequest] = deque()
        # how ``_retries`` run; until they are done, no new request is taken
        self._one_by_one = self._eagerly = False
        self._failures_before = 0
        self._loop: Iterator[DecodeOutput] | None = None
        self._finished: list[TokenResult] = []

    def run_until(self, next_chunk: NextChunk, n_finished: int) -> list[TokenResult]:
        """Decode until ``n_finished`` requests have finished; fewer, then none, if no more come.

        Args:
            next_chunk: called whenever a slot is free; None if there is no request (for now).

        Raises:
            Exception: a failure while no request was running.
        """
        while True:
            try:
                with self.recovery.placement("t3") as stage:
                    self._decode(cast(T3, stage), next_chunk, n_finished)
                finished, self._finished = self._finished, []
                return finished
            except torch.OutOfMemoryError as error:
                self._free_memory(error)
            except REQUEST_ERRORS as error:
                self._on_error(error)
            # all running requests start again: the same seeds give the same tokens
            self._retries.extendleft(reversed(self._running.values()))
            self._running.clear()
            self._loop = None

    def _on_error(self, error: Exception) -> None:
        """Choose how the running requests are retried; a single one fails with the error."""
        accelerated = self.backend.forward is not None or self.backend.fused
        if accelerated and not self._eagerly:
            self._on_step_failure(error)
            return
        if self._eagerly:  # eager steps fail too: caused by a request, not by the backend
            self.recovery.step_failures = self._failures_before
        if len(self._running) > 1:
            self._one_by_one = True
        else:
            self._fail_request(error)

    def _on_step_failure(self, error: Exception) -> None:
        """Fall back to eager steps: permanently, or for the running requests only."""
        self._failures_before = self.recovery.step_failures
        self.recovery.step_failures += 1
        if is_setup_error(error):
            failure = "compilation of the t3 step failed"
        elif self.recovery.step_failures < MAX_STEP_FAILURES:
            self.recovery.warn_once(f"the t3 step failed ({first_line(error)}); retrying eagerly")
            self._eagerly = True
            return
        else:
            failure = f"the t3 step failed {MAX_STEP_FAILURES} times in a row"
        log.warning("%s", eager_from_now_on(failure, error))
        self.recovery.step_failures = 0
        self.backend = EagerBackend()

    def _free_memory(self, error: torch.OutOfMemoryError) -> None:
        """Free device memory: stop overlapped work, else use fewer slots, else offload."""
        if self._release_memory():
            return
        if self._slots > 1:
            self._slots //= 2
            log.warning("t3 ran out of memory: it continues with %d slots", self._slots)
            return
        try:
            self.recovery.out_of_memory("t3", error)
        except DeviceError as final:
            self._fail_request(final)

    def _fail_request(self, error: Exception) -> None:
        """Report the error as the only running request's; raise it if none is running."""
        if not self._running:
            raise error
        (request,) = self._running.values()
        self._finished.append((request, error))
        self._running.clear()

    def _decode(self, t3: T3, next_chunk: NextChunk, n_finished: int) -> None:
        while len(self._finished) < n_finished:
            if self._loop is None:
                self._loop = self._start(t3, next_chunk)
            output = next(self._loop, None)
            if output is not None:
                self._finished.append(self._outcome(t3, output))
                del self._running[output.sequence]
                if output.error is None and not self._eagerly:
                    self.recovery.step_failures = 0
                continue
            self._loop = None
            if not (self._one_by_one or self._eagerly):
                return
            self._one_by_one = self._eagerly = False  # all retries are done

    def _start(self, t3: T3, next_chunk: NextChunk) -> Iterator[DecodeOutput]:
        only_retries = self._one_by_one or self._eagerly

        def next_request() -> DecodeRequest | None:
            while True:
                if self._retries:
                    request: ChunkRequest | None = self._retries.popleft()
                else:
                    request = None if only_retries else next_chunk()
                if request is None:
                    return None
                try:
                    decode_request = self._decode_request(request, t3)
                except REQUEST_ERRORS as error:
                    self._finished.append((request, error))
                    continue
                self._running[decode_request] = request
                return decode_request

        backend, count = self.backend, self._slots
        if self._one_by_one:
            count = 1
        elif self._eagerly:  # its KV cache is allocated next to that of the backend that stays
            backend, count = EagerBackend(), max(1, min(count, len(self._retries)))
        slots = backend.slots(t3, count, self._rows_per_seq)
        return decode(t3, slots, next_request, backend)

    def _decode_request(self, request: ChunkRequest, t3: T3) -> DecodeRequest:
        device, voice = t3.like.device, request.voice
        ids = text_tokens(self._tokenizer, request.chunk.text)
        prompt = Prompt(*(to_device(x, device) for x in (ids, voice.speaker, voice.prompt)))
        generator = torch.Generator(device).manual_seed(request.seed)
        return DecodeRequest(prompt, request.sampling, generator, request.on_token)

    def _outcome(self, t3: T3, output: DecodeOutput) -> TokenResult:
        """The result of a decoded request; NaN/Inf in fp16/bf16 are retried in float32 here."""
        request = self._running[output.sequence]
        if isinstance(output.error, NumericsError) and t3.dtype != torch.float32:
            self.recovery.warn_once("t3 produced NaN or Inf: running it again in float32")
            with in_float32(t3):
                eager, single = EagerBackend(), iter([self._decode_request(request, t3)])
                slots = eager.slots(t3, 1, self._rows_per_seq)
                [output] = decode(t3, slots, lambda: next(single, None), eager)
        if isinstance(output.error, NumericsError):
            return request, NumericsError(
                f"{output.error}, in float32: the weights may be damaged, get them again"
            )
        if output.error is not None:
            return request, output.error
        tokens = [token for token in output.tokens if token < SPEECH_TOKENS]
        if not tokens:
            text = request.chunk.text[:40]
            message = f"the model generated no speech for {text!r}: try another --seed"
            return request, SilenceError(message)
        return TokenOutput(
            request, torch.tensor(tokens), output.truncated, output.sequence.generator
        )


def text_tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    """Normalized text to int64 [T] (upstream tokenizer.py, EnTokenizer.encode)."""
    return torch.tensor(tokenizer.encode(text.replace(" ", "[SPACE]")).ids, dtype=torch.long)
