"""Parsers of job files: .txt, .jsonl, .csv, .srt, .vtt, or standard input, to ``Item``s.

Responsible for the formats and the known columns. Not responsible for engines, output files or
whether a text can be synthesized, which is an error of its item only. An ambiguous file (an unknown
column, a duplicate id, a seed that is not a number) is an error before any work, with file and
row.
"""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import Sampling

STDIN = "-"
SAMPLING_COLUMNS = tuple(field.name for field in fields(Sampling))
COLUMNS = ("id", "text", "voice", *SAMPLING_COLUMNS)
_INTEGERS = ("seed", "max_tokens", "cfm_steps")
_TIMING = re.compile(r"^\s*(?:\d+:)?\d+:\d+[.,]\d+\s+-->\s+(?:\d+:)?\d+:\d+[.,]\d+")
_MARKUP = re.compile(r"<[^<>\n]*>|\{\\[^{}\n]*\}")  # <i>, <v Anna>, {\an8}
Cells: TypeAlias = dict[str, Any]  # by column


@dataclass(frozen=True, slots=True)
class Item:
    """One text of a job, and where its audio goes.

    Attributes:
        id: from the row, or the item's number.
        row: line number in the file (cue number in subtitles), for messages.
        text: not yet cleaned.
        voice: a recording or a name; None is the model's own.
        sampling: the job's sampling parameters, overridden by the row's.
        starts_chapter: a chapter begins here.
        file: name in the output directory; "" until runner.py assigns it.
        text_hash, settings_hash: what the manifest compares (see runner.py); "" until then.
    """

    id: str
    row: int
    text: str
    voice: str | None
    sampling: Sampling
    starts_chapter: bool = False
    file: str = ""
    text_hash: str = ""
    settings_hash: str = ""


def read(file: str, content: bytes, default: Sampling, voice: str | None = None) -> list[Item]:
    """Parse a job file.

    Args:
        file: its name, whose extension is its format; ``-`` is plain lines.
        content: of the file.
        default: sampling parameters of rows without their own.
        voice: of rows without their own.

    Raises:
        InputError: unknown format, not UTF-8, or a row that makes the file ambiguous.
    """
    kind = ".txt" if file == STDIN else Path(file).suffix.lower()
    name = "standard input" if file == STDIN else f"'{file}'"
    if kind not in _FORMATS:
        raise InputError(f"{name} has no known extension; give {', '.join(_FORMATS)}, or -")
    text = _decode(name, content)
    items: list[Item] = []
    row_of_id: dict[str, int] = {}
    for row, cells, starts_chapter in _FORMATS[kind](name, text):
        base = Item(str(len(items) + 1), row, "", voice, default, starts_chapter)
        item = _item(f"{name} row {row}", cells, base)
        if item.id in row_of_id:
            raise InputError(
                f"{name} row {row}: id '{item.id}' is that of row {row_of_id[item.id]} too; "
                "give each row its own"
            )
        row_of_id[item.id] = row
        items.append(item)
    if not items:
        raise InputError(f"{name} has no text; give at least one line")
    return items


def _decode(name: str, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} row {row} is not UTF-8: save the file as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Each parser yields (row, cells, starts_chapter).
_Parsed: TypeAlias = Iterator[tuple[int, Cells, bool]]


def _parse_lines(name: str, text: str) -> _Parsed:
    """One item per line; an empty line before it starts a chapter."""
    starts_chapter = False
    for row, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            starts_chapter = True
            continue
        yield row, {"text": line.strip()}, starts_chapter
        starts_chapter = False


def _parse_json_lines(name: str, text: str) -> _Parsed:
    for row, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(": line 1")[0]
            raise InputError(f"{name} row {row} is not JSON ({reason}): correct it") from error
        if not isinstance(cells, dict):
            raise InputError(f'{name} row {row} is not a JSON object: write {{"text": …}}')
        yield row, cells, False


def _parse_csv(name: str, text: str) -> _Parsed:
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        _check_columns(f"{name} row 1", header)
        if len(set(header)) < len(header):
            raise InputError(f"{name} row 1 names a column twice; name each once")
        last_line = reader.line_num
        for cells in reader:
            row, last_line = last_line + 1, reader.line_num  # a quoted cell may hold line breaks
            if not cells:
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{name} row {row} has {len(cells)} cells and the header {len(header)}; "
                    'put a text with commas in quotes ("…")'
                )
            yield row, dict(zip(header, cells, strict=True)), False
    except csv.Error as error:
        raise InputError(
            f"{name} row {reader.line_num} is not CSV ({error}): correct it"
        ) from error


def _parse_cues(name: str, text: str) -> _Parsed:
    """Subtitles: the text of every cue, without markup; times are ignored."""
    lines: list[str] | None = None
    number = 0
    for line in [*text.split("\n"), ""]:
        if _TIMING.match(line):
            number, lines = number + 1, []
        elif lines is not None and line.strip():
            lines.append(line.strip())
        elif lines is not None:
            cue = " ".join(html.unescape(_MARKUP.sub("", line)) for line in lines).strip()
            if cue:
                yield number, {"text": cue}, False
            lines = None


_FORMATS: dict[str, Callable[[str, str], _Parsed]] = {
    ".txt": _parse_lines,
    ".jsonl": _parse_json_lines,
    ".csv": _parse_csv,
    ".srt": _parse_cues,
    ".vtt": _parse_cues,
}


def _check_columns(where: str, columns: list[str]) -> None:
    for column in columns:
        if column not in COLUMNS:
            known = ", ".join(COLUMNS)
            raise InputError(f"{where}: unknown column '{column}'; known: {known}")
    if "text" not in columns:
        raise InputError(f"{where} has no text; name the column 'text'")


def _item(where: str, cells: Cells, base: Item) -> Item:
    """``base`` overridden by a row's cells; an empty cell is treated as absent."""
    _check_columns(where, list(cells))
    cells = {column: cell for column, cell in cells.items() if cell not in (None, "")}
    text, id = cells.pop("text", ""), cells.pop("id", base.id)
    voice = cells.pop("voice", base.voice)
    if not isinstance(text, str):
        raise InputError(f"{where}: text is not a string; put it in quotes")
    if isinstance(id, bool) or not isinstance(id, (str, int)):
        raise InputError(f"{where}: id is not a string or whole number")
    if voice is not None and not isinstance(voice, str):
        raise InputError(f"{where}: voice is not a string; give a file or a name")
    try:
        overrides = {column: _number(column, cell) for column, cell in cells.items()}
        sampling = replace(base.sampling, **overrides)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return replace(base, id=str(id), text=text, voice=voice, sampling=sampling)


def _number(column: str, cell: Any) -> Any:
    kind: type[int] | type[float] = int if column in _INTEGERS else float
    try:
        if isinstance(cell, bool) or (kind is int and isinstance(cell, float)):
            raise ValueError
        return kind(cell)
    except (ValueError, TypeError, OverflowError) as error:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{column} is {json.dumps(cell)[:40]}; give {what}") from error
