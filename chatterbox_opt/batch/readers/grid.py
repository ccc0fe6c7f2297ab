"""A table in a text, as a person would read it aloud.

Responsible for one table: each row by the names of its columns. Not responsible for how tables are
written (markdown.py, html.py), or for tables of job rows (tables.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

COLUMNS = "names of empty columns"  # what of a table is not read


@dataclass(slots=True)
class Grid:
    """A table while it is read.

    Attributes:
        header: names of the columns.
        cells: of the current row.
        used: columns with a cell that is not empty.
        row: line of the current row.
    """

    header: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    row: int = 0

    def row_text(self) -> str:
        """The current row as it is read: ``Name: Ada, Age: 36.``; without a header, its cells."""
        read = []
        for i, (name, cell) in enumerate(zip_longest(self.header, self.cells, fillvalue="")):
            if cell:
                self.used.add(i)
                read.append(f"{name}: {cell}" if name else cell)
        return ", ".join(read) + ("." if read and self.header else "")

    @property
    def unused(self) -> list[str]:
        """Names of the columns without a cell."""
        return [name for i, name in enumerate(self.header) if i not in self.used]
