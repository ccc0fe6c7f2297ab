"""Status output on standard error: lines, warnings, what is waited for, progress bars.

Responsible for Rich and the terminal, for showing what the library logs, and for escaping what
would control the terminal. Not responsible for results on standard output: a wav, JSON, or a table
(tables.py). Imports no torch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from chatterbox_opt.cli.terminal import streams, tables
from chatterbox_opt.utils import steps
from chatterbox_opt.utils.printable import printable, printable_json

if TYPE_CHECKING:
    from chatterbox_opt import request

TOKENS_PER_CHARACTER = 1.7  # calm English has 15 characters and 25 tokens a second


class Reporter:
    """The status output of one command.

    Attributes:
        quiet: only warnings and errors are shown.
        verbose: reasons and details are shown too.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._spinner: Status | None = None
        self._has_bars = False
        self._describe: Callable[[str], None] | None = None  # shows a step next to the bars
        self._steps: set[str] = set()  # printed as lines

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is a terminal."""
        return self.console.is_terminal

    def table(self, rows: Iterable[tuple[str, str]]) -> None:
        """Print a small table of names and figures to stderr."""
        grid = Table(show_header=False, box=None, pad_edge=False)
        grid.add_column(style="bold")
        grid.add_column(justify="right")
        for name, value in rows:
            grid.add_row(Text(printable(name)), Text(printable(value)))
        if not self.quiet:
            self.console.print(grid)

    def status(self, line: str) -> None:
        """Print a status line, unless quiet; it ends the step that is shown."""
        self.end_step()
        if not self.quiet:
            self.console.print(printable(line), markup=False)

    def detail(self, line: str) -> None:
        """Print a line with ``-v`` only."""
        if self.verbose and not self.quiet:
            self.console.print(printable(line), markup=False, style="dim")

    def warn(self, line: str) -> None:
        """Print a warning, even if quiet."""
        self.console.print(f"warning: {printable(line)}", markup=False, style="yellow")

    def step(self, what: str, *, rare: bool = False) -> None:
        """Show what is waited for, on a terminal: a spinner, until the next step or status line,
        or next to the bar of ``progress``.

        Args:
            what: "" ends the step that is shown.
            rare: elsewhere, and under progress bars, a line is printed once.
        """
        what = printable(what)
        if not what or self.quiet:
            self.end_step()
        elif self._describe is not None and not rare:
            self._describe(what)
        elif self._spinner is not None:
            self._spinner.update(Text(what))
        elif self.is_terminal and not self._has_bars and self._spin(what):
            return
        elif rare and what not in self._steps:
            self._steps.add(what)
            self.status(what)

    def _spin(self, what: str) -> bool:
        spinner = Status(Text(what), console=self.console)
        try:
            spinner.start()
        except LiveError:  # something else is animated
            return False
        self._spinner = spinner
        return True

    def end_step(self) -> None:
        """Remove the step that is shown, if any."""
        if self._spinner is not None:
            spinner, self._spinner = self._spinner, None
            spinner.stop()

    @contextmanager
    def waiting(self, what: str, *, rare: bool = False) -> Iterator[None]:
        """Show what is waited for while the block runs; see ``step``."""
        self.step(what, rare=rare)
        try:
            yield
        finally:
            self.end_step()

    @contextmanager
    def bars(self, *columns: ProgressColumn) -> Iterator[Progress]:
        """Show progress bars, on a terminal, while the block runs."""
        self.end_step()
        self._has_bars = True
        try:
            with (
                streams.no_control_echo(),
                Progress(*columns, console=self.console, transient=True) as bars,
            ):
                yield bars
        finally:
            self._has_bars = False

    @contextmanager
    def progress(self) -> Iterator[Callable[[request.Progress], None]]:
        """Show a bar per chunk with tokens per second while the block runs, only on a terminal.

        The length of a bar is estimated from the number of characters of its chunk.
        """
        self.end_step()
        if self.quiet or not self.console.is_terminal:
            yield lambda progress: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.completed} tokens"),
            TextColumn("{task.fields[rate]:.1f} tokens/s", style="progress.data.speed"),
        )
        with self.bars(*columns) as bars:

            def show(progress: request.Progress) -> None:
                chunk = f"chunk {progress.chunk + 1}/{progress.chunks}"
                if len(bars.tasks) <= progress.chunk:
                    for done in bars.tasks:
                        bars.update(done.id, visible=False)
                    bars.add_task(chunk, total=progress.characters * TOKENS_PER_CHARACTER, rate=0)
                task, tokens = bars.tasks[-1], progress.tokens
                rate = tokens / task.elapsed if task.elapsed else 0
                bars.update(task.id, completed=tokens, description=chunk, rate=rate)

            def describe(step: str) -> None:
                for task in bars.tasks[-1:]:
                    chunk = task.description.partition(":")[0]
                    bars.update(task.id, description=f"{chunk}: {step}")

            self._describe = describe
            try:
                yield show
            finally:
                self._describe = None


class _Warnings(logging.Handler):
    """Prints the library's warnings as warnings of the command."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.warn(record.getMessage())


class _Steps(logging.Handler):
    """Shows the steps that the library announces; logging closes it when the process exits."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.step(record.getMessage(), rare=record.levelno >= logging.INFO)

    def close(self) -> None:
        self._reporter.end_step()
        super().close()


def show_log(reporter: Reporter) -> None:
    """Show the library's warnings, and the steps that it announces."""
    logger = logging.getLogger("chatterbox_opt")
    logger.handlers, logger.propagate = [_Warnings(reporter)], False
    announced = logging.getLogger(steps.LOGGER)
    announced.handlers, announced.propagate = [_Steps(reporter)], False
    announced.setLevel(logging.DEBUG)


class _Details(logging.Handler):
    """Prints what the library logs for -v."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.INFO:
            self._reporter.detail(f"  {record.getMessage()}")


def show_details(reporter: Reporter, logger_name: str) -> None:
    """Show what one module of the library logs for -v."""
    logger = logging.getLogger(logger_name)
    logger.handlers = [_Details(reporter)]
    logger.setLevel(logging.INFO)


def as_utf8(argument: str) -> str:
    """A command-line argument read as UTF-8, whatever the locale is (ASCII in C and POSIX).

    One that is not UTF-8 is returned as the locale decoded it; what it could not decode is in it as
    lone surrogates, which ``chunking.clean`` rejects.
    """
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table to standard output."""
    tables.show(list(columns), [list(row) for row in rows])


def print_json(result: Any) -> None:
    """Print a result as indented JSON to standard output."""
    print(printable_json(json.dumps(result, indent=1, ensure_ascii=False)))
