"""Items of a .txt file: its lines, or its paragraphs with wrapped lines joined.

Responsible for where an item ends, and for chapters. Not responsible for markup (markdown.py).

Two kinds of files have this extension. A list has an item a line, and an empty line between groups.
Prose has paragraphs between empty lines, and often a line break wherever the next word did not fit:
there a line is no item, or the voice would stop in mid-sentence.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chatterbox_opt.batch.readers.rows import Parsed, Row
from chatterbox_opt.script.cast import Cast

NARROWEST = 30  # characters of the longest line; text is hardly ever wrapped at less
WRAPPED = 0.6  # share of the line breaks inside paragraphs that look like wrapping
SMALL = 0.3  # share of these whose next line begins with a small letter; German has many capitals
ALONE = 0.8  # share of paragraphs of one line, in text that is not wrapped
HEADING = 80  # characters at most

_END = tuple(".!?:;…。！？\"”’')]»—")
_ORDINAL = (
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|seventeen|eighteen|nineteen|(?:twenty|thirty|forty|fifty)(?:[- ][a-z]+)?|"
    r"first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)"
)
_ROMAN = r"(?=[ivxlcdm])(?:m{0,3}(?:cm|cd|d?c{0,3})(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3}))"
_NUMBERED = re.compile(
    r"(?:chapter|part|book|volume|section|act|scene|canto|letter|stave|appendix)\s+"
    rf"(?:\d+|{_ROMAN}|(?:the\s+)?{_ORDINAL}|[a-z])\b(?:\s*[-.:—–].*|\s+.*[^.!?]|\.?)"
    r"|(?:prologue|epilogue|preface|foreword|afterword|introduction|interlude|contents)\.?",
    re.IGNORECASE,
)
_NUMERAL = re.compile(
    r"(?=[IVXLCDM]{2}|[IVX]\.)M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})\.?"
)
_COMPOUND = re.compile(r"(?<![^\W\d_])(?=([^\W\d_]+-[^\W\d_]+))")
_DIVIDED = re.compile(r"([^\W\d_]+)-$")
# "two- and three-year-olds": the hyphen stands for a word that follows
_SUSPENDED = re.compile(r"(?:and|or|to|und|oder|bis|et|ou|y|o)\b|[^\W\d_]+-", re.IGNORECASE)
_LIST_ITEM = re.compile(r"(?:[-*+•–—·‣▪◦]|\d{1,3}[.)])\s")
_INDENT = re.compile(r"(?:\t| {2,}|\u3000)\S")


class Split(str, Enum):
    """What an item of a .txt file is."""

    AUTO = "auto"  # paragraphs if lines are wrapped or stand alone, else lines
    LINES = "lines"
    PARAGRAPHS = "paragraphs"


@dataclass(frozen=True, slots=True)
class _Paragraph:
    """Lines without an empty one between them.

    Attributes:
        row: of the first line.
        lines: without blanks around them.
        blanks: number of empty lines before it.
    """

    row: int
    lines: tuple[str, ...]
    blanks: int


def read_prose(text: str, split: Split, cast: Cast | None = None) -> Parsed:
    """Rows of a .txt file.

    Args:
        cast: of a dialogue: a line that begins with a name begins an item, and lines without one
            go on with it.
    """
    paragraphs, dialogue = _paragraphs(text), cast is not None and cast.dialogue
    wrapped = _is_wrapped([p.lines for p in paragraphs])
    alone = sum(len(p.lines) == 1 for p in paragraphs) >= ALONE * len(paragraphs)
    by_line = split == Split.LINES or (split == Split.AUTO and not (wrapped or alone or dialogue))
    if by_line:
        parsed = _by_line(paragraphs)
    else:
        join = wrapped or split == Split.PARAGRAPHS or dialogue
        parsed = _by_paragraph(paragraphs, cast, join=join)
    if split == Split.AUTO and "\n" in text.strip():
        why = "lines are wrapped: they are joined" if wrapped else "an empty line ends each"
        taken = "an item is a line" if by_line else f"an item is a paragraph ({why})"
        taken = "an item is what one speaker says" if dialogue else taken
        parsed.notes.append(f"{taken}; --split changes it")
    return parsed


def _paragraphs(text: str) -> list[_Paragraph]:
    """Lines between empty ones; where first lines are indented, also from one to the next."""
    lines = text.split("\n")
    written = [line for line in lines if line.strip()]
    indented = sum(_INDENT.match(line) is not None for line in written)
    by_indent = 2 <= indented <= len(written) / 2
    found: list[_Paragraph] = []
    current: list[str] = []
    blanks = blanks_before = 0

    def end(row: int) -> None:
        if current:
            found.append(_Paragraph(row - len(current), tuple(current), blanks_before))
            current.clear()

    for row, line in enumerate([*lines, ""], 1):
        if not line.strip():
            end(row)
            blanks += 1
            continue
        if by_indent and _INDENT.match(line):
            end(row)
        if not current:
            blanks_before = blanks
        current.append(line.strip())
        blanks = 0
        if len(current) == 1 and _is_numbered_heading(current[0]):
            end(row + 1)  # a heading without an empty line behind it
    return found


def _by_line(paragraphs: Sequence[_Paragraph]) -> Parsed:
    """An item a line; an empty line before it starts a chapter."""
    return Parsed(
        [
            Row(
                paragraph.row + i,
                {"text": line},
                i == 0 and paragraph.blanks > 0,
                chapter=line if i == 0 and is_heading([line]) else "",
            )
            for paragraph in paragraphs
            for i, line in enumerate(paragraph.lines)
        ]
    )


def _by_paragraph(paragraphs: Sequence[_Paragraph], cast: Cast | None, *, join: bool) -> Parsed:
    """An item a paragraph; two empty lines before it, or a heading, start a chapter.

    Args:
        cast: whose names begin an item.
        join: wrapped lines are one item; else each of them is one. An entry of a list always is.
    """
    lines = (line for p in paragraphs for line in p.lines)
    known = {compound.lower() for line in lines for compound in _COMPOUND.findall(line)}
    parsed = Parsed()
    before = ""
    for p in paragraphs:
        title = p.lines[0] if is_heading(p.lines, before) else ""
        starts_chapter = p.blanks > 1 or bool(title)
        row = p.row
        for part in _entries(p.lines, cast) if join else [[line] for line in p.lines]:
            text = _join(part, known)
            parsed.rows.append(Row(row, {"text": text}, starts_chapter, chapter=title))
            row, starts_chapter, title = row + len(part), False, ""
        before = p.lines[-1]
    return parsed


def _entries(lines: Sequence[str], cast: Cast | None) -> list[list[str]]:
    """The lines of a paragraph, cut before each entry of a list and each name of a dialogue."""
    parts: list[list[str]] = []
    for line in lines:
        if not parts or _LIST_ITEM.match(line) or (cast and cast.begins(line)):
            parts.append([])
        parts[-1].append(line)
    return parts


def is_heading(lines: Sequence[str], before: str = "") -> bool:
    """Whether a paragraph is a heading: a line such as ``Chapter 3`` or ``XII``, or in capitals.

    Args:
        before: the line before it; a number behind an unfinished sentence is that of a page.
    """
    line = lines[0]
    if len(lines) != 1 or len(line) > HEADING:
        return False
    shouted = line.isupper() and sum(c.isalpha() for c in line) > 3 and not line.endswith(_END)
    numeral = _NUMERAL.fullmatch(line) or re.fullmatch(r"\d{1,3}\.?", line)
    finished = not before or before.endswith(_END)
    return shouted or _is_numbered_heading(line) or (bool(numeral) and finished)


def _is_numbered_heading(line: str) -> bool:
    return len(line) <= HEADING and _NUMBERED.fullmatch(line) is not None


def _is_wrapped(paragraphs: Sequence[Sequence[str]]) -> bool:
    """Whether most line breaks are where the next word did not fit, in mid-sentence."""
    lengths = sorted(len(line) for lines in paragraphs for line in lines[:-1])
    breaks = [pair for lines in paragraphs for pair in zip(lines, lines[1:], strict=False)]
    # not the longest: one line that is not wrapped says nothing about the others
    width = lengths[(3 * len(lengths) - 1) // 4] if lengths else 0
    if width < NARROWEST:
        return False
    wrapped = [
        following
        for line, following in breaks
        if not _LIST_ITEM.match(following)
        and (
            line.endswith(("-", "\u00ad"))
            or (not line.endswith(_END) and len(line) + 1 + len(following.split()[0]) > 0.8 * width)
        )
    ]
    # the lines of a list or a poem begin with capitals, those of prose with any word; scripts
    # without small letters give no sign, and keep their lines
    small = sum(next((c.islower() for c in line if c.isalpha()), False) for line in wrapped)
    return len(wrapped) >= WRAPPED * len(breaks) and small >= SMALL * len(wrapped) > 0


def _join(lines: Sequence[str], known: set[str]) -> str:
    """Lines as one; a word that was divided at a hyphen is whole again.

    Args:
        known: compounds of the text in lower case, which keep their hyphen (``well-`` ``known``).
    """
    parts = [lines[0]]
    for line in lines[1:]:
        last = parts[-1]
        head, tail = _DIVIDED.search(last), re.match(r"[^\W\d_]+", line)
        if last.endswith("\u00ad"):
            parts[-1] = last[:-1]
        elif head and _SUSPENDED.match(line):
            parts.append(" ")
        elif head and tail and tail[0][0].islower():
            if f"{head[1]}-{tail[0]}".lower() not in known:
                parts[-1] = last[:-1]
        elif not last.endswith("-") or last.endswith(("--", " -")):
            parts.append("" if _has_no_spaces(last[-1:]) and _has_no_spaces(line[0]) else " ")
        parts.append(line)
    return "".join(parts)


def _has_no_spaces(char: str) -> bool:
    """Whether a character is of Chinese or Japanese, which put no spaces between words."""
    return "\u3000" <= char <= "\u9fff" or "\uff00" <= char <= "\uffef"
