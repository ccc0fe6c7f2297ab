"""A table in a text, as a person would read it aloud.

Responsible for one table: each row by the names of its columns. Not responsible for how tables are
written (markdown.py, html.py), or for tables of job rows (tables.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

COLUMNS = "names of empty columns"  # what of a table is not read
MAX_COLUMNS = 100  # beyond which a cell is in a single row and column, whatever it says


@dataclass(slots=True)
class Grid:
    """A table while it is read.

    Attributes:
        header: names of the columns.
        cells: of the current row, by their first columns.
        used: columns with a cell that is not empty.
        row: line of the current row.
    """

    header: dict[int, str] = field(default_factory=dict)
    cells: dict[int, str] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    row: int = 0
    _number: int = 0  # of the current row
    _column: int = 0  # of the next cell
    # cells that reach into rows below: by first column, the column behind and the last row
    _tall: dict[int, tuple[int, int]] = field(default_factory=dict)

    def begin_row(self, row: int = 0) -> None:
        """Begin a row at a line of the file."""
        self.cells, self._column, self.row = {}, 0, row
        self._number += 1

    def begin_group(self) -> None:
        """Begin a group of rows, such as the table's body: no cell reaches into it."""
        self._tall.clear()

    def add(self, text: str, columns: int = 1, rows: int = 1) -> None:
        """Add the next cell of the current row, behind those that reach into it from above.

        Args:
            columns, rows: that it spans.
        """
        while (tall := self._tall.get(self._column)) and tall[1] >= self._number:
            self._column = tall[0]
        first = self._column
        self.cells[first] = text
        if first >= MAX_COLUMNS:
            self._column += 1
            return
        self._column += min(columns, MAX_COLUMNS)
        if rows > 1:
            self._tall[first] = (self._column, self._number + rows - 1)

    def take_header(self) -> None:
        """Let the current row name the columns."""
        self.header, self.cells = self.cells, {}

    def row_text(self) -> str:
        """The current row as it is read: ``Name: Ada, Age: 36.``; without a header, its cells."""
        read = []
        for column, cell in self.cells.items():
            if cell:
                self.used.add(column)
                name = self.header.get(column, "")
                read.append(f"{name}: {cell}" if name else cell)
        return ", ".join(read) + ("." if read and self.header else "")

    @property
    def unused(self) -> list[str]:
        """Names of the columns without a cell."""
        return [name for column, name in self.header.items() if column not in self.used]

    @property
    def names(self) -> str:
        """Names of the columns, for a table that has nothing else."""
        return ", ".join(filter(None, self.header.values()))
