"""The command line: the Typer application and exit codes.

Responsible for assembling the commands and for reporting every error as one line on stderr and an
exit code. Not responsible for options, for what commands do, or for signals during its own import
(main.py). Commands import torch inside their functions, so that wrong arguments are reported
without delay.
"""

from __future__ import annotations

import atexit
import errno
import gc
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Annotated

import typer

from chatterbox_opt import __version__
from chatterbox_opt.cli import bench as bench_command
from chatterbox_opt.cli import convert as convert_command
from chatterbox_opt.cli import models as models_command
from chatterbox_opt.cli import profiles as profiles_command
from chatterbox_opt.cli import usage
from chatterbox_opt.cli import voices as voices_command
from chatterbox_opt.cli.batch import command as batch_command
from chatterbox_opt.cli.doctor import command as doctor_command
from chatterbox_opt.cli.serve import command as serve_command
from chatterbox_opt.cli.signals import INTERRUPTED
from chatterbox_opt.cli.synth import command as synth_command
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.cli.terminal.console import as_utf8
from chatterbox_opt.errors import ChatterboxOptError, InputError
from chatterbox_opt.utils.printable import message_line

app = typer.Typer(
    name=usage.NAME,
    cls=usage.Commands,
    help="Fast inference for Chatterbox text-to-speech.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=usage.SETTINGS,
)
app.command(cls=usage.TextCommand)(synth_command.synth)
app.command()(batch_command.batch)
app.command()(convert_command.convert)
app.command()(serve_command.serve)
app.command()(bench_command.bench)
app.add_typer(voices_command.voices, name="voices")
app.add_typer(models_command.models, name="models")
app.add_typer(profiles_command.profiles, name="profiles")
app.command()(doctor_command.doctor)

DEBUG = "--debug"
FULL = (errno.ENOSPC, errno.EDQUOT)
COLLECT_AFTER = 200_000  # new objects before a garbage collection; Python's default is 700


def _version(*, requested: bool) -> None:
    if requested:
        print(f"chatterbox-opt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda v: _version(requested=v),
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Fast inference for Chatterbox text-to-speech."""


def main() -> None:
    """Run the command line and exit (see main.py)."""
    # torch's 150,000 objects live until the end: collecting garbage among them while they are
    # created, and once more when the process ends, takes half a second
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)
    sys.excepthook = _unexpected
    with streams.tolerant():
        code = _exit_code(_run)
        if sys.stdout is not None:
            code = _exit_code(sys.stdout.flush) or code
        sys.exit(code)


def _run() -> int:
    # call the command and not the Typer object, which would replace our excepthook
    code = typer.main.get_command(app)(standalone_mode=False, prog_name=usage.NAME)
    if code == INTERRUPTED:  # Typer turns Ctrl-C into this code
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _exit_code(work: Callable[[], int | None]) -> int:
    """The exit code of ``work``; its error is printed as one line."""
    try:
        return work() or 0
    except ChatterboxOptError as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1, error)
    except usage.CLICK_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        return _fail(usage.message_of(error), 2, error)
    except BrokenPipeError:
        return 1  # the reader of the audio has gone
    except OSError as error:
        # of a copy to a full disk it is the target, which comes second
        name = error.filename2 or error.filename if error.errno in FULL else error.filename
        where = f": '{name}'" if name else ""
        return _fail(f"{error.strerror or error}{where}", 1, error)
    except usage.EndOfFileError as error:
        raise error.__cause__ or error from None  # for _unexpected
    except (KeyboardInterrupt, typer.Abort):
        # CPython notes a Ctrl-C within an exec, which many imports call, and would end by SIGINT
        # in place of our exit code; the next exec resets that
        exec("")
        return _fail("interrupted", INTERRUPTED, None)


def _fail(message: str, code: int, error: Exception | None) -> int:
    if error is not None and DEBUG in sys.argv:
        traceback.print_exception(error)
    print(f"error: {message_line(as_utf8(message))}", file=sys.stderr)
    return code


def terminate(number: int, _: object) -> None:
    """Exit as after Ctrl-C, so that no partial file is left behind: a signal handler."""
    sys.exit(128 + number)


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an unexpected error as one line, with how to get the traceback."""
    if DEBUG in sys.argv:
        traceback.print_exception(kind, error, trace)
    reason = message_line(str(error))
    print(f"error: unexpected {kind.__name__}: {reason}; run again with {DEBUG}", file=sys.stderr)
