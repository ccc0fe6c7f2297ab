"""Text from a pipe, a file or a terminal, piece by piece as it arrives.

Responsible for reading bytes without waiting for a line or a full block, for UTF-8 that is cut
anywhere, and for noticing that the writer pauses. Not responsible for sentences (incremental.py).

A thread reads, because on Windows a pipe cannot be waited for with a time limit. It is a daemon:
its last read may never return, and the process must still exit.
"""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Iterator
from io import RawIOBase

from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.utils.closing import Closing

FLUSH_AFTER = 1.0  # seconds without text after which a writer counts as pausing
_BLOCK = 1 << 16  # bytes of one read
_MAX_BUFFERED = 1 << 20  # bytes; a long file must not fill the memory
_POLL = 0.05  # seconds; on Windows a wait does not end by Ctrl-C
_NO_DATA = 0.01  # seconds until a non-blocking stream is read again


class ArrivingText(Closing):
    """The text of a stream; iterate over it once, in the thread that uses it.

    Yields what has arrived since the last piece was taken, and None when nothing has arrived for
    ``flush_after`` seconds. Ends with the stream. ``close``, from any thread, ends the iteration,
    and the reading thread as soon as its read returns.

    Usage:
        with ArrivingText(sys.stdin.buffer.raw) as pieces:
            for chunk in chunks_of(pieces):
                ...
    """

    def __init__(self, stream: RawIOBase, flush_after: float | None = FLUSH_AFTER) -> None:
        """Start to read.

        Args:
            stream: unbuffered and binary; nothing else may read it. It is not closed.
            flush_after: seconds without text; None: a pause of the writer does not matter.
        """
        self._stream = stream
        self._flush_after = flush_after
        self._changed = threading.Condition()  # guards the fields below
        self._buffer = bytearray()
        self._arrived = 0.0  # when the last bytes did, time.monotonic
        self._ended = False
        self._closed = False
        self._error: OSError | None = None
        threading.Thread(target=self._read, name="read text", daemon=True).start()

    def close(self) -> None:
        """End the iteration and the reading."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[str | None]:
        """Yield text, or None for a pause of the writer.

        Raises:
            TextError: not UTF-8; what comes before is yielded first.
            InputError: the stream cannot be read; likewise.
        """
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        position = 0
        flush_after = None  # a pause is reported once, after text
        while (block := self._take(flush_after)) != b"":
            flush_after = None
            if block is None:
                yield None
                continue
            position += len(block)
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError as error:
                yield _valid(error)
                raise _not_utf8(error, position) from error
            if text:
                flush_after = self._flush_after
                yield text
        if self._closed:
            return
        if self._error is not None:
            reason = self._error.strerror or self._error
            raise InputError(f"the text cannot be read ({reason}): check where it comes from")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, position) from error

    def _take(self, flush_after: float | None) -> bytes | None:
        """All bytes that have arrived, waiting for some; b"" at the end, None for a pause."""
        with self._changed:
            while not (self._buffer or self._ended or self._closed):
                rest = _POLL
                if flush_after is not None:
                    rest = min(_POLL, self._arrived + flush_after - time.monotonic())
                    if rest <= 0:
                        return None
                self._changed.wait(rest)
            block = b"" if self._closed else bytes(self._buffer)
            self._buffer.clear()
            self._changed.notify_all()
            return block

    def _read(self) -> None:
        """Fill the buffer until the stream ends or ``close``; runs in the thread."""
        try:
            while block := self._read_block():
                with self._changed:
                    self._buffer += block
                    self._arrived = time.monotonic()
                    self._changed.notify_all()
                    while len(self._buffer) > _MAX_BUFFERED and not self._closed:
                        self._changed.wait()
        except OSError as error:
            self._error = error
        except ValueError:  # the stream has been closed
            pass
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _read_block(self) -> bytes:
        """The next bytes, b"" at the end."""
        while not self._closed:
            block: bytes | None = self._stream.read(_BLOCK)
            if block is not None:
                return block
            time.sleep(_NO_DATA)
        return b""


def _valid(error: UnicodeDecodeError) -> str:
    """What comes before the bytes that are no text."""
    return error.object[: error.start].decode("utf-8")


def _not_utf8(error: UnicodeDecodeError, position: int) -> TextError:
    """The error as the command line words it.

    Args:
        position: number of bytes that were decoded, with those of the error.
    """
    where = position - len(error.object) + error.start
    return TextError(f"the text is not UTF-8 (byte {where}): save it as UTF-8")
