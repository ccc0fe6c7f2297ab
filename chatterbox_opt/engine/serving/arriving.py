"""Speech of a text that is still being written: a request for each sentence that is complete.

Responsible for the thread that takes the text, for how many requests are ahead, and for the order
of their pieces. Not responsible for where a sentence ends (text/incremental.py) or for the work.

The text may come from a pipe whose writer takes its time, so a thread of its own waits for it.
While one sentence is heard the next ones are decoded, but no more than ``AHEAD``: they would take
decode steps from the one that is heard.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.scheduler import AHEAD
from chatterbox_opt.engine.sequence import REQUEST_ERRORS
from chatterbox_opt.engine.serving.handle import RequestHandle
from chatterbox_opt.request import Piece, check_text
from chatterbox_opt.text.chunking import Chunk
from chatterbox_opt.text.incremental import chunks_of
from chatterbox_opt.text.rules import TextRules

_POLL = 0.1  # seconds; on Windows a wait does not end by Ctrl-C


class ArrivingRequests:
    """The requests of one text."""

    def __init__(
        self,
        text: Iterable[str | None],
        submit: Callable[[Chunk, int], RequestHandle | None],
        rules: TextRules,
    ) -> None:
        """Set what is needed; ``pieces`` begins to take text.

        Args:
            text: pieces of any size; None: the writer pauses. Used by a thread of its own.
            submit: starts the request of a chunk with its number; None: it has nothing to say.
            rules: of the model and the language.
        """
        self._text, self._submit, self._rules = text, submit, rules
        self._free = threading.Semaphore(AHEAD)
        self._closed = threading.Event()
        self._taken: queue.SimpleQueue[RequestHandle | Piece | BaseException | None]
        self._taken = queue.SimpleQueue()  # in order; an error or None comes last

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of all requests in order, once.

        Text is taken from the first ``next`` on: a generator that was never started has nothing
        that would end a thread.

        Raises:
            Exception: the error of the text or of a request.
        """
        threading.Thread(target=self._run, name="arriving text", daemon=True).start()
        handle: RequestHandle | None = None
        try:
            while (taken := self._next()) is not None:
                if isinstance(taken, BaseException):
                    raise taken
                if isinstance(taken, Piece):
                    yield taken
                    continue
                handle = taken
                yield from handle
                self._free.release()
        finally:
            self._close(handle)

    def _close(self, handle: RequestHandle | None) -> None:
        """End the requests and, when it next gets text, the thread."""
        self._closed.set()
        self._free.release()
        if handle is not None:
            handle.cancel()
        while not self._taken.empty():
            waiting = self._taken.get()
            if isinstance(waiting, RequestHandle):
                waiting.cancel()

    def _next(self) -> RequestHandle | Piece | BaseException | None:
        while True:
            try:
                return self._taken.get(timeout=_POLL)
            except queue.Empty:
                continue

    def _run(self) -> None:
        error: Exception | None = None
        number = 0
        try:
            for chunk in chunks_of(self._checked(), self._rules.limit, self._rules):
                if not chunk.text:
                    self._taken.put(_silence(chunk.pause))
                    continue
                self._free.acquire()
                if self._closed.is_set():
                    return
                if handle := self._submit(chunk, number):
                    number += 1
                    self._taken.put(handle)
                    if self._closed.is_set():  # closed since it was submitted
                        handle.cancel()
                        return
                else:
                    self._free.release()
        except REQUEST_ERRORS as caught:
            error = caught
        finally:
            self._taken.put(error or sys.exc_info()[1])  # a bug in the text's iterator

    def _checked(self) -> Iterator[str | None]:
        for piece in self._text:
            if self._closed.is_set():
                return
            if piece is not None:
                check_text(piece)
            yield piece


def _silence(seconds: float) -> Piece:
    return Piece(np.zeros(round(seconds * SAMPLE_RATE), np.float32), "", 0, {})
