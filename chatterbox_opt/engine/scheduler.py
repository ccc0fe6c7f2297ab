"""Scheduler: the loop over all requests. Each step admits, decodes, renders, retries and emits.

    add(request) -> waiting --admit--> backend (decode slots, rendering) --> retry?
                       ^                                                      | no
                       +-------- yes, or to be decoded again -----------------+--> finish -> events

Admission is fair: a slot goes to the next request in rotation, within it to its oldest sequence,
and retries come first. So a text of a thousand chunks does not hold up one of a single chunk. A
request with low latency has no more than ``AHEAD`` chunks in the backend, the one that is heard
among them: others would take decode steps from that one.

Responsible for which sequence comes next and when a request has ended. Not responsible for models
(``SpeechBackend``) or for the threads that call it (loop.py): it serves one at a time.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.decoding.alignment import placed, words_of
from chatterbox_opt.engine.rendering.finishing import finished
from chatterbox_opt.engine.retries import faults_in_parts, retry
from chatterbox_opt.engine.sequence import (
    REQUEST_ERRORS,
    Capacity,
    Part,
    RequestState,
    Sequence,
    Status,
)
from chatterbox_opt.errors import RequestCancelledError
from chatterbox_opt.request import Piece
from chatterbox_opt.utils.wave import Wave

FINISH_THREAD = "finish"
AHEAD = 2  # chunks of a stream that are worked on
# samples around a part that its watermark is computed with: 200 ms and 40 ms
MARK_BEFORE, MARK_AFTER = SAMPLE_RATE // 5, SAMPLE_RATE // 25


class SpeechBackend(Protocol):
    """Turns sequences into audio: ``Pipeline`` or ``UpstreamBackend``.

    Attributes:
        device: the model's.
        group: sequences that it renders together, at most.
    """

    device: torch.device
    group: int

    @property
    def idle(self) -> bool:
        """Whether it holds no sequence."""
        ...

    @property
    def empty(self) -> bool:
        """Whether no sequence is being decoded."""
        ...

    @property
    def free_slots(self) -> int:
        """Sequences that could be admitted now."""
        ...

    def open(self, capacity: Capacity) -> None:
        """Set what is allocated, while no sequence is decoded; a fixed capacity ignores it."""
        ...

    def admit(self, sequence: Sequence) -> bool:
        """Put a sequence into a decode slot; False if there is none for it now."""
        ...

    def step(self) -> list[Sequence]:
        """Work up to the next point at which sequences can be admitted or removed.

        Returns:
            the sequences that left the backend: with audio, with an error, or with the status
            WAITING, to be admitted again.
        """
        ...

    def remove(self, sequence: Sequence) -> None:
        """Drop a sequence that was admitted; one that is being rendered is finished first."""
        ...

    def release(self) -> None:
        """Drop all sequences; free what belongs to slots and threads."""
        ...

    def close(self) -> None:
        """Free the model and the device's memory."""
        ...


class Scheduler:
    """All requests of an engine.

    Attributes:
        queued: requests of which no sequence was admitted yet.
    """

    def __init__(
        self, backend: SpeechBackend, watermark: Watermark | None, *, overlap: bool
    ) -> None:
        """Start without requests.

        Args:
            watermark: added to all audio.
            overlap: add it on a thread, in parallel with the stages. Not useful on a CPU, where
                the thread would compete with them for the cores.
        """
        self._backend, self._watermark, self._overlap = backend, watermark, overlap
        self.queued = 0
        self._requests: dict[RequestState, None] = {}  # that have not ended, in order
        self._waiting: deque[RequestState] = deque()  # that have waiting sequences, next first
        self._finishing: dict[RequestState, None] = {}  # that have pieces to hand over
        self._finisher: ThreadPoolExecutor | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is left."""
        return not self._requests

    def room(self, capacity: Capacity) -> int:
        """Slots that are free for sequences of another request with this capacity."""
        free = capacity.slots if self._backend.empty else self._backend.free_slots
        return free - sum(len(request.waiting) for request in self._waiting)

    def add(self, request: RequestState) -> None:
        """Append a request with at least one sequence."""
        self._requests[request] = None
        self._waiting.append(request)
        self.queued += 1

    def cancel(self, request: RequestState) -> None:
        """End a request with ``RequestCancelledError``; its slots are free at once."""
        self._end(request, RequestCancelledError("the request was cancelled"))

    def step(self) -> None:
        """Move all requests on, up to the next point at which slots can change hands."""
        self._admit()
        returned = self._backend.step()
        for request in list(self._requests):
            while request.parts and request.result is None:
                self._on_part(request.parts.popleft())
        again = [sequence for sequence in returned if self._on_attempt(sequence)]
        for sequence in reversed(again):  # the first comes first again
            self._wait_again(sequence)
        self._emit()

    def abort(self, error: Exception) -> None:
        """End all requests with an error, whatever state an interrupted step has left."""
        try:
            self.release()
        finally:
            for request in list(self._requests):
                self._end(request, error)

    def release(self) -> None:
        """Free what belongs to slots and threads, when no request is left."""
        self._backend.release()
        finisher, self._finisher = self._finisher, None
        if finisher is not None:
            finisher.shutdown(cancel_futures=True)

    # --- admission ----------------------------------------------------------------------------

    def _admit(self) -> None:
        if self._waiting and self._backend.empty:
            self._backend.open(self._capacity())
        while (request := next(filter(_may_enter, self._waiting), None)) is not None:
            start = time.perf_counter()
            if not self._backend.admit(request.waiting[0]):
                return
            if request.admitted is None:
                request.admitted = start
                self.queued -= 1
            request.waiting.popleft()
            self._waiting.remove(request)
            if request.waiting:
                self._waiting.append(request)

    def _capacity(self) -> Capacity:
        """What the requests need together."""
        needs = [request.capacity for request in self._requests]
        return Capacity(
            slots=max(need.slots for need in needs),
            use_cfg=any(need.use_cfg for need in needs),
            group=min(need.group for need in needs),
        )

    def _wait_again(self, sequence: Sequence) -> None:
        request = sequence.request
        if request.result is not None:  # another of its sequences has failed
            return
        request.waiting.appendleft(sequence)
        if request in self._waiting:
            self._waiting.remove(request)
        self._waiting.appendleft(request)

    # --- what the backend returns -------------------------------------------------------------

    def _on_attempt(self, sequence: Sequence) -> bool:
        """Finish a sequence or fail its request; True if it has to wait for a slot again."""
        request = sequence.request
        if request.result is not None:  # cancelled while it was rendered
            sequence.end(Status.CANCELLED)
            return False
        is_whole = request.hops is None or sequence.error is not None
        if sequence.status is Status.WAITING or (is_whole and retry(sequence)):
            return True
        request.decoded = time.perf_counter()
        if is_whole:
            if sequence.best is None:
                assert sequence.error is not None
                self._end(request, sequence.error)
                return False
            samples = sequence.trim(sequence.best.samples, is_last=True)
            best = replace(sequence.best, samples=samples, seconds=sequence.seconds)
            if request.seams is None:
                self._finish(sequence, best)
            else:
                for window, piece, before, after in request.seams.add(sequence.index, best):
                    self._finish(request.sequences[window], piece, before, after)
        sequence.end(Status.DONE)
        return False

    def _on_part(self, part: Part) -> None:
        """Finish a part of a sequence; at its end, warn of faults: it is too late for a retry."""
        sequence, request = part.sequence, part.sequence.request
        before = np.concatenate(sequence.heard)[-MARK_BEFORE:] if sequence.heard else None
        sequence.heard.append(part.samples)
        if not (request.guard or request.alignment_heads or before is None):  # they need all of it
            sequence.heard = [before, part.samples]
        faults: tuple[str, ...] = ()
        if part.is_last and request.guard is not None:
            faults = faults_in_parts(sequence)
        piece = Piece(
            sequence.trim(part.samples, is_last=part.is_last),
            *(sequence.chunk.text, part.tokens, sequence.seconds, faults),
            part=part.number,
            ends_chunk=part.is_last,
            words=words_of(sequence, sequence.heard) if part.is_last else (),
        )
        sequence.seconds = {}
        self._finish(sequence, piece, before, part.following[:MARK_AFTER])

    def _finish(
        self,
        sequence: Sequence,
        piece: Piece,
        before: Wave | None = None,
        after: Wave | None = None,
    ) -> None:
        """Add watermark and pauses: on a thread, or at once.

        Args:
            before, after: sound around the piece.
        """
        request = sequence.request
        piece = replace(piece, words=placed(sequence, piece.words))
        mark = None if request.tokens_only else self._watermark
        lead, pause = sequence.chunk.silences
        silences = (0.0 if piece.part else lead, pause if piece.ends_chunk else 0.0)
        work = functools.partial(finished, piece, silences, mark, before, after)
        request.finishing[sequence.index, piece.part] = self._submit(work)
        self._finishing[request] = None

    def _submit(self, work: Callable[[], Piece]) -> Future[Piece]:
        if self._overlap:
            self._finisher = self._finisher or ThreadPoolExecutor(1, FINISH_THREAD)
            return self._finisher.submit(work)
        done: Future[Piece] = Future()
        try:
            done.set_result(work())
        except REQUEST_ERRORS as error:
            done.set_exception(error)
        return done

    def _emit(self) -> None:
        """Hand over finished pieces, each request's in order; wait if there is nothing else."""
        if not self._finishing:
            return
        wait = self._backend.idle and not self._waiting
        for request in list(self._finishing):
            try:
                while (future := request.finishing.get(request.emitted)) is not None:
                    if not (wait or future.done()):
                        break
                    piece = future.result()
                    del request.finishing[request.emitted]
                    request.emit(piece)
            except REQUEST_ERRORS as error:
                self._end(request, error)
            else:
                if not request.finishing:
                    del self._finishing[request]
                if request.emitted == (len(request.sequences), 0):
                    self._end(request)

    def _end(self, request: RequestState, error: Exception | None = None) -> None:
        """End a request and drop what is left of it; does nothing if it has ended."""
        if request not in self._requests:
            return
        del self._requests[request]
        if request in self._waiting:
            self._waiting.remove(request)
        self._finishing.pop(request, None)
        self.queued -= request.admitted is None
        left = Status.CANCELLED if isinstance(error, RequestCancelledError) else Status.FAILED
        try:
            for sequence in request.sequences:
                if sequence.status is not Status.DONE:
                    self._backend.remove(sequence)
                    sequence.end(left)
        finally:
            request.waiting.clear()
            request.finishing.clear()
            request.end(error)


def _may_enter(request: RequestState) -> bool:
    """Whether the next sequence of a request may get a slot."""
    return request.hops is None or request.waiting[0].index < request.emitted[0] + AHEAD
