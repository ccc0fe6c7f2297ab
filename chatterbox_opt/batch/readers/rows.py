"""What a reader of job files returns.

Responsible for these values. Not responsible for reading: see the other modules of this folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from chatterbox_opt.audio.tags import Tags
from chatterbox_opt.errors import InputError

Cells: TypeAlias = dict[str, Any]  # by column
SCENE_BREAK, CODE_BLOCK = "scene break", "code block"  # reasons of a pause


@dataclass(frozen=True, slots=True)
class Row:
    """A row before its cells are checked.

    Attributes:
        number: line of the file, or number of the cue, for messages.
        cells: by column; has ``text``.
        starts_chapter: a chapter begins here.
        chapter: its title, if it has one.
        start, end: seconds, of a cue; None elsewhere.
        pause: why nothing is spoken, such as "scene break"; "" for a row that is spoken.
    """

    number: int
    cells: Cells
    starts_chapter: bool = False
    start: float | None = None
    end: float | None = None
    pause: str = ""
    chapter: str = ""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A text of the file that is not spoken, and why.

    Attributes:
        reason: a plural noun, such as "sound descriptions".
        text: as in the file.
        row: as ``Row.number``.
    """

    reason: str
    text: str
    row: int

    @property
    def words(self) -> int:
        """Number of words with a letter or digit."""
        return sum(any(c.isalnum() for c in word) for word in self.text.split())


def check_columns(where: str, columns: Iterable[str], known: Sequence[str], hint: str = "") -> None:
    """Check the names of a row's or a header's columns.

    Args:
        where: file and row, for the message.
        hint: a further sentence about unknown ones.

    Raises:
        InputError: an unknown column, or none is ``text``.
    """
    columns = list(columns)
    if unknown := [column for column in columns if column not in known]:
        raise InputError(f"{where}: unknown column '{unknown[0]}'; known: {', '.join(known)}{hint}")
    if "text" not in columns:
        raise InputError(f"{where} has no text; name the column 'text'")


@dataclass(slots=True)
class Parsed:
    """What a reader made of a file.

    Attributes:
        rows: in the file's order.
        dropped: texts that no row has.
        notes: how the file was read where there was a choice, in words.
        tags: what the file says about itself; no chapters.
    """

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tags: Tags = field(default_factory=Tags)


def words_by_reason(dropped: Iterable[Dropped]) -> dict[str, int]:
    """Number of dropped words for each reason; reasons without a word are left out."""
    counts: dict[str, int] = {}
    for part in dropped:
        counts[part.reason] = counts.get(part.reason, 0) + part.words
    return {reason: count for reason, count in counts.items() if count}
