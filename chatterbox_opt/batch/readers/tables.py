"""Rows of .jsonl, .csv and .tsv files.

Responsible for delimiters, quotes, headers and line numbers. Not responsible for which columns
there are, beyond the names that are passed.

A .csv is written by many programs, so its delimiter is found: from a first line ``sep=;`` (Excel),
else it is the one of comma, semicolon, tab and ``|`` that splits the header into known columns. A
file without a header that is split by ``|`` is that of the LJSpeech data set: id, text, and the
text with numbers in words, which is the one that is spoken.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from chatterbox_opt.batch.readers.rows import Dropped, Parsed, Row, check_columns
from chatterbox_opt.errors import InputError

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}
_LJSPEECH = "|"


def read_json_lines(name: str, text: str, columns: Sequence[str]) -> Parsed:
    """A JSON object a line; empty lines are skipped.

    Args:
        columns: the known ones.

    Raises:
        InputError: not JSON, or an unknown column.
    """
    parsed = Parsed()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            reason = str(error).partition(": line 1")[0]
            raise InputError(f"{name} row {number} is not JSON ({reason}): correct it") from error
        if not isinstance(cells, dict):
            raise InputError(f'{name} row {number} is not a JSON object: write {{"text": …}}')
        check_columns(f"{name} row {number}", cells, columns)
        parsed.rows.append(Row(number, cells))
    return parsed


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that is there twice would hide a text."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        raise ValueError("a key is there twice")
    return cells


def read_csv(name: str, text: str, columns: Sequence[str], *, tabs: bool = False) -> Parsed:
    """A header and its rows.

    Args:
        columns: the known ones.
        tabs: a .tsv: the delimiter is a tab.

    Raises:
        InputError: unknown column, or a row that does not fit the header.
    """
    text, empty = text.lstrip("\n"), len(text) - len(text.lstrip("\n"))
    start, delimiter = _declared(text)
    header_line = text[start:].partition("\n")[0]
    parsed = Parsed()
    if delimiter is None:
        delimiter = "\t" if tabs else _find_delimiter(header_line, text, columns)
        if delimiter != ("\t" if tabs else ","):
            parsed.notes.append(f"columns separated by {DELIMITERS[delimiter]}")
    header = _cells(header_line, delimiter)
    if delimiter == _LJSPEECH and "text" not in header:
        return _read_ljspeech(name, text)
    _read_rows(name, text[start:], delimiter, columns, parsed, first=empty + (2 if start else 1))
    return parsed


def _declared(text: str) -> tuple[int, str | None]:
    """Length of a first line ``sep=;``, and its delimiter."""
    first, _, _ = text.partition("\n")
    declared = first.strip().strip('"')
    if len(declared) >= 4 and declared.lower().startswith("sep=") or first == "sep=\t":
        return len(first) + 1, first.lower().partition("sep=")[2][0]
    return 0, None


def _cells(line: str, delimiter: str) -> list[str]:
    """Cells of a header, without blanks around them; capitals are as good as small letters."""
    cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return [cell.strip().lower() for cell in cells]


def _known(header: Sequence[str], columns: Sequence[str]) -> bool:
    return "text" in header and all(cell in columns for cell in header if cell)


def _find_delimiter(header: str, text: str, columns: Sequence[str]) -> str:
    """The delimiter that splits a header into known columns.

    If there is none, the one that finds a column ``text`` or else the most cells, so that the
    message about unknown columns is about cells that a person would see.
    """
    split = {delimiter: _cells(header, delimiter) for delimiter in DELIMITERS}
    for delimiter, cells in split.items():
        if _known(cells, columns):
            return delimiter
    lines = [line for line in text.split("\n", 20)[:20] if line.strip()]
    if lines and all(1 <= line.count("|") <= 2 for line in lines):
        return _LJSPEECH  # without a header; its sentences have more commas
    return max(split, key=lambda delimiter: ("text" in split[delimiter], len(split[delimiter])))


def _read_rows(
    name: str, text: str, delimiter: str, columns: Sequence[str], parsed: Parsed, first: int
) -> None:
    # a blank before a quote is common in files written by hand, and hides the quote from csv
    plain = delimiter == "\t" and _has_plain_quotes(text)
    reader = csv.reader(
        io.StringIO(text),
        delimiter=delimiter,
        strict=True,
        skipinitialspace=True,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        header = _without_empty_end(header, 0)
        _check_header(f"{name} row {first}", header, columns, delimiter)
        last = reader.line_num
        for cells in reader:
            number, last = first + last, reader.line_num  # a quoted cell may hold line breaks
            if not any(cells):
                continue
            cells = _without_empty_end(cells, len(header))
            if len(cells) != len(header):
                raise InputError(_misfit(f"{name} row {number}", cells, header, delimiter))
            named = dict(zip(header, cells, strict=True))
            parsed.rows.append(
                Row(number, {n: c if n == "text" else c.strip() for n, c in named.items()})
            )
    except csv.Error as error:
        raise InputError(
            f"{name} row {first - 1 + reader.line_num} is not CSV ({error}): correct it"
        ) from error


def _has_plain_quotes(text: str) -> bool:
    """Whether quotes are a part of the text in a tab-separated file: every line has all cells."""
    counts = {line.count("\t") for line in text.split("\n") if line.strip()}
    quoted = re.search(r'(?:^|\t)"[^\t\n]*"(?=\t|$)', text, re.MULTILINE)
    return '"' in text and len(counts) == 1 and quoted is None


def _without_empty_end(cells: list[str], length: int) -> list[str]:
    """Cells without empty ones at the end beyond ``length``: a trailing comma makes one."""
    while len(cells) > length and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _check_header(
    where: str, header: Sequence[str], columns: Sequence[str], delimiter: str
) -> None:
    if len(set(header)) < len(header):
        raise InputError(f"{where} names a column twice; name each once")
    hint = f". The first row names the columns, here separated by {_shown(delimiter)}"
    check_columns(where, header, columns, hint)


def _shown(delimiter: str) -> str:
    return DELIMITERS.get(delimiter, repr(delimiter))


def _misfit(where: str, cells: Sequence[str], header: Sequence[str], delimiter: str) -> str:
    likely = (
        f'put a text with a {_shown(delimiter)} in it in quotes ("…")'
        if len(cells) > len(header)
        else "fill in the others, or write the delimiters of empty cells"
    )
    return f"{where} has {len(cells)} cells and the header {len(header)}; {likely}"


def _read_ljspeech(name: str, text: str) -> Parsed:
    """``id|text|text in words``, without a header; quotes are a part of the text."""
    parsed = Parsed(notes=["read as LJSpeech metadata: id|text|text in words"])
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split(_LJSPEECH)]
        if not 2 <= len(cells) <= 3 or not cells[0]:
            raise InputError(
                f"{name} row {number} is not LJSpeech metadata (id|text|text in words): correct "
                "it, or name the columns in the first row"
            )
        in_words = cells[2] if len(cells) == 3 else ""
        chosen = in_words if 2 * len(in_words.split()) >= len(cells[1].split()) else cells[1]
        if in_words and chosen != in_words:  # a speaker's number or name
            parsed.dropped.append(Dropped("third columns", in_words, number))
        parsed.rows.append(Row(number, {"id": cells[0], "text": chosen}))
    return parsed
