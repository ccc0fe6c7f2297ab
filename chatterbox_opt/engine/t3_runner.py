"""T3 at work on lines: text in, speech tokens out, with what can be healed healed.

Knows decoding, residency and the fallbacks of the t3 stage. Knows nothing of sound, of whole
texts, or of why a line is said again.

    out of device memory            -> no sound beside it, then half as many slots, then offload,
                                       then DeviceError
    a compiled step that fails      -> eager steps
    NaN or infinity in half         -> that line again in float32 -> NumericsError
    any other failure in company    -> those lines one by one: it is one line's, not the batch's
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
from chatterbox_opt.errors import DeviceError, NumericsError, SilenceError
from chatterbox_opt.models.t3.decode_state import DecodeOutput, DecodeRequest
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.runtime import cuda_graphs
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.runtime.recovery import RecoveryPolicy, in_float32

log = logging.getLogger(__name__)


class T3Runner:
    """The t3 stage for one run over lines."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        recovery: RecoveryPolicy,
        backend: DecodeBackend,
        slots: int,
        rows_per_seq: int,
        rest: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare for ``slots`` lines at once.

        Args:
            backend: how steps are run; ``backend`` tells whether it is still that one.
            rows_per_seq: rows of a line: 2, or 1 if no line wants guidance.
            rest: has others leave the device's memory to T3; whether there were any.
        """
        self._tokenizer, self.recovery, self._rest = tokenizer, recovery, rest
        self.backend, self._slots, self._each = backend, slots, rows_per_seq
        self._work: dict[DecodeRequest, ChunkRequest] = {}
        self._again: deque[ChunkRequest] = deque()
        self._one_by_one = False
        self._loop: Iterator[DecodeOutput] | None = None
        self._ended: list[TokenResult] = []

    def turn(self, take: NextChunk, most: int) -> list[TokenResult]:
        """Decode until ``most`` lines have ended; fewer only if there are no more, then none.

        Args:
            take: asked whenever a slot is free; None if there is nothing (for now).

        Raises:
            Exception: a failure with no line in work.
        """
        while True:
            try:
                with self.recovery.placement("t3") as stage:
                    self._decode(cast(T3, stage), take, most)
                ended, self._ended = self._ended, []
                return ended
            except torch.OutOfMemoryError as error:
                self._make_room(error)
            except REQUEST_ERRORS as error:
                if self.backend.forward is not None or self.backend.fused:
                    log.warning("%s", cuda_graphs.capture_failed(error))
                    self.backend = EagerBackend()
                elif len(self._work) > 1:
                    self._one_by_one = True
                else:
                    self._blame(error)
            # all that was in work is asked again: its seeds make it the same
            self._again.extendleft(reversed(self._work.values()))
            self._work.clear()
            self._loop = None

    def _make_room(self, error: torch.OutOfMemoryError) -> None:
        if self._rest():
            return
        if self._slots > 1:
            self._slots //= 2
            log.warning("t3 ran out of memory: it goes on with %d slots", self._slots)
            return
        try:
            self.recovery.out_of_memory("t3", error)
        except DeviceError as final:
            self._blame(final)

    def _blame(self, error: Exception) -> None:
        """It is the failure of the one line in work, or else of no line."""
        if not self._work:
            raise error
        (request,) = self._work.values()
        self._ended.append((request, error))
        self._work.clear()

    def _decode(self, t3: T3, take: NextChunk, most: int) -> None:
        while len(self._ended) < most:
            if self._loop is None:
                self._loop = self._start(t3, take)
            output = next(self._loop, None)
            if output is not None:
                self._ended.append(self._outcome(t3, output))
                del self._work[output.sequence]
                continue
            self._loop = None
            if not self._one_by_one:
                return
            self._one_by_one = False

    def _start(self, t3: T3, take: NextChunk) -> Iterator[DecodeOutput]:
        alone = self._one_by_one

        def next_utterance() -> DecodeRequest | None:
            while True:
                request = self._again.popleft() if self._again else None if alone else take()
                if request is None:
                    return None
                try:
                    utterance = self._utterance(request, t3)
                except REQUEST_ERRORS as error:
                    self._ended.append((request, error))
                    continue
                self._work[utterance] = request
                return utterance

        slots = self.backend.slots(t3, 1 if alone else self._slots, self._each)
        return decode(t3, slots, next_utterance, self.backend)

    def _utterance(self, request: ChunkRequest, t3: T3) -> DecodeRequest:
        device, voice = t3.like.device, request.voice
        ids = text_tokens(self._tokenizer, request.chunk.text)
        prompt = Prompt(*(to_device(x, device) for x in (ids, voice.speaker, voice.prompt)))
        generator = torch.Generator(device).manual_seed(request.seed)
        return DecodeRequest(prompt, request.sampling, generator, request.on_token)

    def _outcome(self, t3: T3, output: DecodeOutput) -> TokenResult:
        request = self._work[output.sequence]
        if isinstance(output.error, NumericsError) and t3.dtype != torch.float32:
            self.recovery.warn_once("t3 gave numbers that are not finite: again in float32")
            with in_float32(t3):
                eager, alone = EagerBackend(), iter([self._utterance(request, t3)])
                slots = eager.slots(t3, 1, self._each)
                [output] = decode(t3, slots, lambda: next(alone, None), eager)
        if isinstance(output.error, NumericsError):
            return request, NumericsError(
                f"{output.error}, in float32: the weights may be damaged, get them again"
            )
        if output.error is not None:
            return request, output.error
        kept = [token for token in output.tokens if token < SPEECH_TOKENS]
        if not kept:
            text = request.chunk.text[:40]
            return request, SilenceError(f"the model said nothing for {text!r}: try another --seed")
        return TokenOutput(request, torch.tensor(kept), output.truncated, output.sequence.generator)


def text_tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    """Normalised text to int64 [T] (upstream tokenizer.py, EnTokenizer.encode)."""
    return torch.tensor(tokenizer.encode(text.replace(" ", "[SPACE]")).ids, dtype=torch.long)
