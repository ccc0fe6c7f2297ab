"""Where in an HTML document its reader is.

Responsible for these values. Not responsible for what changes them (html.py).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chatterbox_opt.batch.readers.grid import Grid

CELLS = ("td", "th")


@dataclass(slots=True)
class Link:
    """An open link into a document.

    Attributes:
        start: number of pieces of text before it.
        raised: it is in a superscript, or has one.
    """

    start: int
    raised: bool


@dataclass(slots=True)
class State:
    """Where in a document the reader is.

    Attributes:
        open: number of open elements, by name.
        depth: number of all.
        pieces: text of the item that is being read.
        heading: in a heading.
        number: of the list item that begins, ``1. ``, or "".
        lists: next number of each open list; None: it has none.
        links: open links; None: one that leads out of the document.
        raised: number of open superscripts.
        tables: number of open tables; only the outermost is read by its rows.
        table: the outermost.
        span: columns and rows of its cell.
        is_header: the row has nothing but names of columns so far.
        unread_at: depth of the element that is not read, or 0.
        reason, unread: why it is not read, and its text.
    """

    open: Counter[str] = field(default_factory=Counter)
    depth: int = 0
    pieces: list[str] = field(default_factory=list)
    heading: bool = False
    number: str = ""
    lists: list[int | None] = field(default_factory=list)
    links: list[Link | None] = field(default_factory=list)
    raised: int = 0
    tables: int = 0
    table: Grid = field(default_factory=Grid)
    span: tuple[int, int] = (1, 1)
    is_header: bool = True
    unread_at: int = 0
    reason: str = ""
    unread: list[str] = field(default_factory=list)

    @property
    def in_cell(self) -> bool:
        """In a cell of a table."""
        return self.tables > 0 and any(self.open[cell] for cell in CELLS)
