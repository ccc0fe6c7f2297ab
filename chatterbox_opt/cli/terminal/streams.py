"""Standard streams that are closed, or whose reader has gone.

Responsible for saying that standard input is closed, and for making output harmless: a command does
its work and returns its own exit code, even if nobody reads what it prints. Not responsible for
audio on standard output, which is written to the binary stream below: there a reader that has gone
ends the command.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    from io import BufferedReader

STREAMS = 3  # standard input, output and error


def standard_input(instead: str) -> BufferedReader:
    """Standard input, for bytes.

    Args:
        instead: the remedy, if it is closed.

    Raises:
        InputError: it is closed.
    """
    if sys.stdin is None:
        raise InputError(f"standard input is closed; {instead}")
    return cast("BufferedReader", sys.stdin.buffer)


class TolerantStream:
    """A text stream that drops what is written after its reader has gone.

    Attributes:
        stream: the original.
        tolerated: errors of the operating system that count as a reader that has gone; None: all.
    """

    def __init__(self, stream: TextIO, tolerated: tuple[int, ...] | None) -> None:
        self.stream, self.tolerated = stream, tolerated

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """As the stream's; a stream that has gone accepts and drops everything."""
        with self._dropping():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream's."""
        with self._dropping():
            self.stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _discard(self.stream)
            if self.tolerated is not None and error.errno not in self.tolerated:
                raise


def _discard(stream: TextIO) -> None:
    """Connect the stream to the null device: what its buffer still holds is written at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    finally:
        os.close(null)


@contextlib.contextmanager
def no_control_echo() -> Iterator[None]:
    """Keep the terminal of standard error from showing ``^C`` while the block runs.

    Behind a bar as wide as the terminal it begins a new line, and the bar could not be removed.
    """
    try:
        import termios
    except ImportError:  # not on Windows
        yield
        return
    try:
        terminal = sys.stderr.fileno()
        before = termios.tcgetattr(terminal)
    except (OSError, termios.error):
        yield
        return
    quiet = [*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]]
    termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Make standard output and error tolerant while the block runs.

    Standard output tolerates only a reader that has gone: a full disk is an error. Of standard
    error, which has no results, everything is tolerated. ``sys.stdin`` and ``sys.stdout`` stay
    None if they are closed: ``print`` does nothing then.
    """
    _open_closed_descriptors()
    output, error = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        stack.callback(_restore, output, error)
        if output is not None:
            sys.stdout = cast(TextIO, TolerantStream(output, (errno.EPIPE,)))
            stack.callback(_flush, sys.stdout)
        if error is None:
            sys.stderr = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        else:
            sys.stderr = cast(TextIO, TolerantStream(error, None))
        yield


def _restore(output: TextIO, error: TextIO) -> None:
    sys.stdout, sys.stderr = output, error


def _flush(stream: TextIO) -> None:
    """Flush now: at the interpreter's end an error would change the exit code."""
    with contextlib.suppress(OSError):
        stream.flush()


def _open_closed_descriptors() -> None:
    """Open the null device as each closed standard stream: otherwise the next file that is opened
    gets its number, and receives what libraries print."""
    for number in range(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def check_output(output: str, subtype: str | None, *, as_json: bool) -> None:
    """Check that audio can be written to a path, before minutes of work.

    Args:
        as_json: a result is printed too.

    Raises:
        InputError: unknown format, a directory that is missing, a terminal.
    """
    audio_files.output_format(output, subtype)
    audio_files.check_writable(output)
    check_stdout(output, "-o", as_json=as_json)


def check_stdout(output: str, option: str, *, as_json: bool) -> None:
    """Check that standard output takes audio, if a path is that.

    Args:
        option: that the path is the value of, for messages.
        as_json: a result is printed too.

    Raises:
        InputError: it does not.
    """
    if not audio_files.is_stdout(output):
        return
    if as_json:
        raise InputError(
            f"audio and --json cannot both go to standard output; set {option} to a file"
        )
    if sys.stdout is None:
        raise InputError(f"standard output is closed; set {option} FILE")
    if sys.stdout.isatty():
        raise InputError(
            f"standard output is a terminal; pipe it (… {option} - | aplay) or set {option} FILE"
        )
