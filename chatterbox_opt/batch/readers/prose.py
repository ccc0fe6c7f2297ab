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

NARROWEST = 30  # characters of the longest line; text is hardly ever wrapped at less
WRAPPED = 0.6  # share of the line breaks inside paragraphs that look like wrapping
HEADING = 80  # characters at most

_END = tuple(".!?:;…。！？\"”’')]»—")
_ORDINAL = (
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    r"sixteen|seventeen|eighteen|nineteen|(?:twenty|thirty|forty|fifty)(?:[- ][a-z]+)?|"
    r"first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)"
)
_HEADING = re.compile(
    r"(?:chapter|part|book|volume|section|act|scene|canto|letter|stave|appendix)\s+"
    rf"(?:\d+|[ivxlcdm]+|(?:the\s+)?{_ORDINAL}|[a-z])(?:\s*[-.:—–,].*)?"
    r"|(?:prologue|epilogue|preface|foreword|afterword|introduction|interlude|contents)"
    r"(?:\s*[-.:—–].*)?"
    r"|[ivxlcdm]+\.?|\d{1,3}\.?",
    re.IGNORECASE,
)
_COMPOUND = re.compile(r"[^\W\d_]+-[^\W\d_]+")


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


def read_prose(text: str, split: Split) -> Parsed:
    """Rows of a .txt file."""
    paragraphs = _paragraphs(text)
    wrapped = _is_wrapped([p.lines for p in paragraphs])
    alone = all(len(p.lines) == 1 for p in paragraphs)
    by_line = split == Split.LINES or (split == Split.AUTO and not wrapped and not alone)
    parsed = _by_line(paragraphs) if by_line else _by_paragraph(paragraphs)
    if split == Split.AUTO and len(parsed.rows) > 1:
        why = "lines are wrapped: they are joined" if wrapped else "an empty line ends each"
        taken = "an item is a line" if by_line else f"an item is a paragraph ({why})"
        parsed.notes.append(f"{taken}; --split changes it")
    return parsed


def _paragraphs(text: str) -> list[_Paragraph]:
    found: list[_Paragraph] = []
    lines: list[str] = []
    blanks = blanks_before = 0
    for row, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            if not lines:
                blanks_before = blanks
            lines.append(line.strip())
            blanks = 0
            continue
        if lines:
            found.append(_Paragraph(row - len(lines), tuple(lines), blanks_before))
            lines = []
        blanks += 1
    return found


def _by_line(paragraphs: Sequence[_Paragraph]) -> Parsed:
    """An item a line; an empty line before it starts a chapter."""
    return Parsed(
        [
            Row(paragraph.row + i, {"text": line}, i == 0 and paragraph.blanks > 0)
            for paragraph in paragraphs
            for i, line in enumerate(paragraph.lines)
        ]
    )


def _by_paragraph(paragraphs: Sequence[_Paragraph]) -> Parsed:
    """An item a paragraph; two empty lines before it, or a heading, start a chapter."""
    known = {compound.lower() for p in paragraphs for compound in _compounds(p.lines)}
    return Parsed(
        [
            Row(p.row, {"text": _join(p.lines, known)}, p.blanks > 1 or is_heading(p.lines))
            for p in paragraphs
        ]
    )


def is_heading(lines: Sequence[str]) -> bool:
    """Whether a paragraph is a heading: a line such as ``Chapter 3`` or ``XII``, or in capitals."""
    if len(lines) != 1 or len(lines[0]) > HEADING:
        return False
    line = lines[0]
    shouted = line.isupper() and sum(c.isalpha() for c in line) > 3 and not line.endswith(_END)
    return shouted or _HEADING.fullmatch(line) is not None


def _is_wrapped(paragraphs: Sequence[Sequence[str]]) -> bool:
    """Whether most line breaks are where the next word did not fit, in mid-sentence."""
    width = max((len(line) for lines in paragraphs for line in lines[:-1]), default=0)
    breaks = [pair for lines in paragraphs for pair in zip(lines, lines[1:], strict=False)]
    if not breaks or width < NARROWEST:
        return False
    wrapped = [
        (line, following)
        for line, following in breaks
        if line.endswith("-")
        or (not line.endswith(_END) and len(line) + 1 + len(following.split()[0]) > 0.8 * width)
    ]
    # the lines of a list or a poem begin with capitals; sentences seldom start where a line does
    capitals = sum(following[0].isupper() for _, following in wrapped)
    return len(wrapped) >= WRAPPED * len(breaks) and 2 * capitals <= len(wrapped)


def _compounds(lines: Sequence[str]) -> list[str]:
    return [compound for line in lines for compound in _COMPOUND.findall(line)]


def _join(lines: Sequence[str], known: set[str]) -> str:
    """Lines as one; a word that was divided at a hyphen is whole again.

    Args:
        known: compounds of the text in lower case, which keep their hyphen (``well-`` ``known``).
    """
    text = ""
    for line in lines:
        head, tail = re.search(r"([^\W\d_]+)-$", text), re.match(r"[^\W\d_]+", line)
        if head and tail and tail[0][0].islower():
            compound = f"{head[1]}-{tail[0]}".lower()
            text = (text if compound in known else text[:-1]) + line
        elif text.endswith("-") and not text.endswith(("--", " -")):
            text += line
        else:
            text = f"{text} {line}" if text else line
    return text
