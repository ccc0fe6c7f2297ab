"""Tables and paragraphs of standard output, as wide as the terminal.

Responsible for columns, widths and line breaks. Not responsible for what is in a table. In a pipe
nothing is broken: a line is a row, for grep and awk; ``--json`` is for programs.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from chatterbox_opt.utils.printable import printable

GAP = "  "
INDENT = 4  # of what follows a row on lines of its own
MIN_PROSE = 24  # columns; narrower, the last cell goes below its row
BOLD, PLAIN = "\033[1m", "\033[0m"


def width() -> int | None:
    """Columns of the terminal that standard output is; None in a pipe or file."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def show(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    cells = [[printable(cell) for cell in row] for row in rows]
    first, *others = lines(headings, cells, width())
    is_bold = width() is not None and "NO_COLOR" not in os.environ
    print(f"{BOLD}{first}{PLAIN}" if is_bold else first)
    for line in others:
        print(line)


def paragraph(text: str) -> None:
    """Print a line of text, broken between words."""
    text = printable(text)
    for line in wrapped(text, width() or len(text)):
        print(line)


def lines(headings: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """The lines of a table.

    If it is too wide, the last column is broken between words; if that leaves less than
    ``MIN_PROSE`` columns for it, the last cell of each row goes below the others.

    Args:
        rows: cells; only the last one may be longer than a few words.
        columns: maximum length of a line; None is unlimited.
    """
    table = [list(headings), *(list(row) for row in rows)]
    widths = _widths(table)
    left = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
    if columns is None or left + widths[-1] <= columns:
        return [_joined(cells, widths) for cells in table]
    if left + MIN_PROSE <= columns or len(headings) == 1:
        return [line for cells in table for line in _with_column(cells, widths, columns - left)]
    return [line for cells in table for line in _with_lines_below(cells, widths, columns)]


def fits(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether the terminal is wide enough for all columns; True in a pipe."""
    columns, widths = width(), _widths([headings, *rows])
    return columns is None or sum(widths) + len(GAP) * (len(widths) - 1) <= columns


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(f"{c:<{w}}" for c, w in zip(cells, widths, strict=False)).rstrip()


def _with_column(cells: Sequence[str], widths: Sequence[int], prose: int) -> list[str]:
    *others, last = cells
    first, *rest = wrapped(last, prose) or [""]
    empty = [""] * len(others)
    return [_joined([*others, first], widths), *(_joined([*empty, part], widths) for part in rest)]


def _with_lines_below(cells: Sequence[str], widths: Sequence[int], columns: int) -> list[str]:
    *others, last = cells
    below = wrapped(last, columns - INDENT)
    return [_joined(others, widths), *(" " * INDENT + line for line in below)]


def wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most ``columns``, broken between words; a longer path is broken after a /."""
    fitted = []
    for word in text.split():
        parts = [word] if len(word) <= columns else re.findall(r"[^/]*/|[^/]+$", word)
        fitted += _filled(parts, columns)
    return textwrap.wrap(" ".join(fitted), columns, break_long_words=False, break_on_hyphens=False)


def _filled(parts: Sequence[str], columns: int) -> list[str]:
    """Join neighbors to words of at most ``columns``, where they are not longer themselves."""
    words = [""]
    for part in parts:
        if words[-1] and len(words[-1] + part) > columns:
            words.append("")
        words[-1] += part
    return words


def short_path(path: Path) -> str:
    """A path with ~ for the home directory, as a shell reads it."""
    home = Path.home()
    return str(Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)
