"""Job files to utterances: .txt, .jsonl, .csv, .srt, .vtt, or standard input.

Knows what each format looks like and which columns there are. Knows nothing of engines, of output
files or of whether a text can be spoken: that is found out, row by row, when its turn comes. What
makes the file itself doubtful (an unknown column, an id given twice, a seed that is no number) is
said before any work, with file and row.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import Sampling

STDIN = "-"
KNOBS = tuple(field.name for field in fields(Sampling))
COLUMNS = ("id", "text", "voice", *KNOBS)
_WHOLE = ("seed", "max_tokens", "cfm_steps")
_TIMING = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+\s+-->\s+(?:\d+:)?\d+:\d+[.,]\d+")
_MARKUP = re.compile(r"<[^<>\n]*>|\{\\[^{}\n]*\}")  # <i>, <v Anna>, {\an8}


@dataclass(frozen=True, slots=True)
class Item:
    """One utterance of a job.

    Attributes:
        id: as given, or its number among the utterances.
        row: its line in the file (its number, for cues), for messages.
        text: not yet cleaned.
        voice: a recording or a name; None is the job's own.
        sampling: the job's knobs with the row's over them.
        starts_chapter: a chapter begins here.
    """

    id: str
    row: int
    text: str
    voice: str | None
    sampling: Sampling
    starts_chapter: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """What a format finds: cells by column, and where."""

    number: int
    cells: Mapping[str, Any]
    starts_chapter: bool = False


def read(file: str, content: bytes, usual: Sampling, voice: str | None = None) -> list[Item]:
    """Turn a job file into items.

    Args:
        file: its name, whose extension is its format; ``-`` is lines.
        content: what is in it.
        usual: knobs that a row does not give.
        voice: for rows that give none.

    Raises:
        InputError: unknown format, not UTF-8, or a row that makes the file doubtful.
    """
    kind = ".txt" if file == STDIN else Path(file).suffix.lower()
    name = "standard input" if file == STDIN else f"'{file}'"
    if kind not in _FORMATS:
        raise InputError(f"{name} has no known extension; give {', '.join(_FORMATS)}, or -")
    text = _decoded(name, content)
    items: list[Item] = []
    seen: dict[str, int] = {}
    for row in _FORMATS[kind](name, text):
        item = _item(
            name, row, len(items) + 1, Item("", row.number, "", voice, usual, row.starts_chapter)
        )
        if item.id in seen:
            raise InputError(
                f"{name} row {item.row}: id '{item.id}' is that of row {seen[item.id]} too; "
                "give each row its own"
            )
        seen[item.id] = item.row
        items.append(item)
    if not items:
        raise InputError(f"{name} has nothing to say; give at least one line")
    return items


def _decoded(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} row {row} is not UTF-8: save the file as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _lines(name: str, text: str) -> Iterator[_Row]:
    """A line an utterance; a blank line before it opens a chapter."""
    starts_chapter = False
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            starts_chapter = True
            continue
        yield _Row(number, {"text": line.strip()}, starts_chapter)
        starts_chapter = False


def _json_lines(name: str, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(": line 1")[0]
            raise InputError(f"{name} row {number} is not JSON ({reason}): mend it") from error
        if not isinstance(cells, dict):
            raise InputError(f'{name} row {number} is no JSON object: write {{"text": …}}')
        yield _Row(number, cells)


def _csv(name: str, text: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        _check_columns(name, 1, header)
        if len(set(header)) < len(header):
            raise InputError(f"{name} row 1 names a column twice; name each once")
        ended = reader.line_num
        for cells in reader:
            number, ended = ended + 1, reader.line_num  # a quoted cell may hold line breaks
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{name} row {number} has {len(cells)} cells and the header {len(header)}; "
                    'put a text with commas in quotes ("…")'
                )
            yield _Row(number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{name} row {reader.line_num} is not CSV ({error}): mend it") from error


def _cues(name: str, text: str) -> Iterator[_Row]:
    """Subtitles: the words of every cue, without markup. When they are shown does not matter."""
    lines: list[str] | None = None
    number = 0
    for line in [*text.split("\n"), ""]:
        if _TIMING.match(line):
            number, lines = number + 1, []
        elif lines is not None and line.strip():
            lines.append(line.strip())
        elif lines is not None:
            words = " ".join(html.unescape(_MARKUP.sub("", line)) for line in lines).strip()
            if words:
                yield _Row(number, {"text": words})
            lines = None


_FORMATS: dict[str, Callable[[str, str], Iterator[_Row]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".csv": _csv,
    ".srt": _cues,
    ".vtt": _cues,
}


def _check_columns(name: str, row: int, columns: list[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise InputError(f"{name} row {row}: unknown column '{column}'; known: {known}")
    if "text" not in columns:
        raise InputError(f"{name} row {row} has no text; name the column 'text'")


def _item(name: str, row: _Row, number: int, usual: Item) -> Item:
    """Cells over the job's own values; an empty cell is one that is not given."""
    _check_columns(name, row.number, list(row.cells))
    given = {column: cell for column, cell in row.cells.items() if cell not in (None, "")}
    text, id = given.pop("text", ""), given.pop("id", number)
    voice = given.pop("voice", usual.voice)
    if not isinstance(text, str):
        raise InputError(f"{name} row {row.number}: text is no string; put it in quotes")
    if isinstance(id, bool) or not isinstance(id, (str, int)):
        raise InputError(f"{name} row {row.number}: id is no string or whole number")
    if voice is not None and not isinstance(voice, str):
        raise InputError(f"{name} row {row.number}: voice is no string; give a file or a name")
    try:
        knobs = {knob: _number(knob, cell) for knob, cell in given.items()}
        sampling = replace(usual.sampling, **knobs)
    except InputError as error:
        raise InputError(f"{name} row {row.number}: {error}") from error
    return replace(usual, id=str(id), text=text, voice=voice, sampling=sampling)


def _number(knob: str, cell: Any) -> Any:
    kind: type[int] | type[float] = int if knob in _WHOLE else float
    try:
        if isinstance(cell, bool) or (kind is int and isinstance(cell, float)):
            raise ValueError
        return kind(cell)
    except (ValueError, TypeError, OverflowError) as error:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{knob} is {json.dumps(cell)[:40]}; give {what}") from error
