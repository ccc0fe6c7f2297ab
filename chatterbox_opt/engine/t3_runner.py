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
        ladder: RecoveryPolicy,
        way: DecodeBackend,
        slots: int,
        each: int,
        rest: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare for ``slots`` lines at once.

        Args:
            way: how steps are run; ``way`` tells whether it is still that one.
            each: rows of a line: 2, or 1 if no line wants guidance.
            rest: has others leave the device's memory to T3; whether there were any.
        """
        self._tokenizer, self._ladder, self._rest = tokenizer, ladder, rest
        self.way, self._slots, self._each = way, slots, each
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
                with self._ladder.residency("t3") as stage:
                    self._decode(cast(T3, stage), take, most)
                ended, self._ended = self._ended, []
                return ended
            except torch.OutOfMemoryError as error:
                self._make_room(error)
            except REQUEST_ERRORS as error:
                if self.way.forward is not None or self.way.fused:
                    log.warning("%s", cuda_graphs.capture_failed(error))
                    self.way = EagerBackend()
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
            self._ladder.out_of_memory("t3", error)
        except DeviceError as final:
            self._blame(final)

    def _blame(self, error: Exception) -> None:
        """It is the failure of the one line in work, or else of no line."""
        if not self._work:
            raise error
        (line,) = self._work.values()
        self._ended.append((line, error))
        self._work.clear()

    def _decode(self, t3: T3, take: NextChunk, most: int) -> None:
        while len(self._ended) < most:
            if self._loop is None:
                self._loop = self._start(t3, take)
            said = next(self._loop, None)
            if said is not None:
                self._ended.append(self._outcome(t3, said))
                del self._work[said.utterance]
                continue
            self._loop = None
            if not self._one_by_one:
                return
            self._one_by_one = False

    def _start(self, t3: T3, take: NextChunk) -> Iterator[DecodeOutput]:
        alone = self._one_by_one

        def next_utterance() -> DecodeRequest | None:
            while True:
                line = self._again.popleft() if self._again else None if alone else take()
                if line is None:
                    return None
                try:
                    utterance = self._utterance(line, t3)
                except REQUEST_ERRORS as error:
                    self._ended.append((line, error))
                    continue
                self._work[utterance] = line
                return utterance

        slots = self.way.slots(t3, 1 if alone else self._slots, self._each)
        return decode(t3, slots, next_utterance, self.way)

    def _utterance(self, line: ChunkRequest, t3: T3) -> DecodeRequest:
        device, voice = t3.like.device, line.voice
        ids = text_tokens(self._tokenizer, line.chunk.text)
        prompt = Prompt(*(to_device(x, device) for x in (ids, voice.speaker, voice.prompt)))
        generator = torch.Generator(device).manual_seed(line.seed)
        return DecodeRequest(prompt, line.sampling, generator, line.on_token)

    def _outcome(self, t3: T3, said: DecodeOutput) -> TokenResult:
        line = self._work[said.utterance]
        if isinstance(said.error, NumericsError) and t3.dtype != torch.float32:
            self._ladder.warn_once("t3 gave numbers that are not finite: again in float32")
            with in_float32(t3):
                eager, alone = EagerBackend(), iter([self._utterance(line, t3)])
                slots = eager.slots(t3, 1, self._each)
                [said] = decode(t3, slots, lambda: next(alone, None), eager)
        if isinstance(said.error, NumericsError):
            return line, NumericsError(
                f"{said.error}, in float32: the weights may be damaged, get them again"
            )
        if said.error is not None:
            return line, said.error
        kept = [token for token in said.tokens if token < SPEECH_TOKENS]
        if not kept:
            text = line.chunk.text[:40]
            return line, SilenceError(f"the model said nothing for {text!r}: try another --seed")
        return TokenOutput(line, torch.tensor(kept), said.cut, said.utterance.generator)


def text_tokens(tokenizer: Tokenizer, text: str) -> Tensor:
    """Normalised text to int64 [T] (upstream tokenizer.py, EnTokenizer.encode)."""
    return torch.tensor(tokenizer.encode(text.replace(" ", "[SPACE]")).ids, dtype=torch.long)
