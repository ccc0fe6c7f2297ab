"""Terminal output: status lines, progress bars, tables, warnings. All but tables go to stderr.

Responsible for Rich and the terminal. Not responsible for computing anything; imports no torch.
Standard output is for results: a wav, a JSON object, or a requested table.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

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
            grid.add_row(Text(name), Text(value))
        if not self.quiet:
            self.console.print(grid)

    def status(self, line: str) -> None:
        """Print a status line, unless quiet."""
        if not self.quiet:
            self.console.print(line, markup=False)

    def detail(self, line: str) -> None:
        """Print a line with ``-v`` only."""
        if self.verbose and not self.quiet:
            self.console.print(line, markup=False, style="dim")

    def warn(self, line: str) -> None:
        """Print a warning, even if quiet."""
        self.console.print(f"warning: {line}", markup=False, style="yellow")

    @contextmanager
    def progress(self) -> Iterator[Callable[[request.Progress], None]]:
        """Show a bar per chunk with tokens per second while the block runs, only on a terminal.

        The length of a bar is estimated from the number of characters of its chunk.
        """
        if self.quiet or not self.console.is_terminal:
            yield lambda progress: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed} tokens"),
            _Rate(),
        )
        with Progress(*columns, console=self.console, transient=True) as bars:

            def show(progress: request.Progress) -> None:
                if len(bars.tasks) <= progress.chunk:
                    for done in bars.tasks:
                        bars.update(done.id, visible=False)
                    guess = progress.characters * TOKENS_PER_CHARACTER
                    bars.add_task(f"chunk {progress.chunk + 1}/{progress.chunks}", total=guess)
                bars.update(bars.tasks[-1].id, completed=progress.tokens)

            yield show


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{rate:.1f} tokens/s", style="progress.data.speed")


class _Warnings(logging.Handler):
    """Prints the library's warnings as warnings of the command."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.warn(record.getMessage())


def show_warnings(reporter: Reporter) -> None:
    """Print the library's log messages as warnings of the command."""
    logger = logging.getLogger("chatterbox_opt")
    logger.handlers, logger.propagate = [_Warnings(reporter)], False


def discard_stdout() -> None:
    """Send standard output to nowhere from now on: its reader has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table to standard output: boxed on a terminal, aligned plain text in a pipe."""
    names, lines = list(columns), [list(row) for row in rows]
    if not sys.stdout.isatty():
        widths = [max(len(cells[i]) for cells in [names, *lines]) for i in range(len(names))]
        for cells in [names, *lines]:
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            print("  ".join(padded).rstrip())
        return
    grid = Table(*names, header_style="bold")
    for cells in lines:
        grid.add_row(*(Text(cell) for cell in cells))
    Console().print(grid)
