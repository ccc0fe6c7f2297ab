"""Items of a .md file, as a person would read it aloud.

Responsible for which parts are items, pauses or dropped. Not responsible for the syntax
(markdown-it-py).

A heading starts a chapter; paragraphs and list items are items; emphasis and links are their text;
a table is read by its rows, each cell behind the name of its column; a rule is a scene break. Code
blocks, HTML, addresses of links and front matter are not read: they are counted, and a code block
is a pause.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from chatterbox_opt.batch.readers.grid import COLUMNS, Grid
from chatterbox_opt.batch.readers.rows import CODE_BLOCK, SCENE_BREAK, Dropped, Parsed, Row
from chatterbox_opt.batch.readers.unread import CODE, FOOTNOTE_MARKS

if TYPE_CHECKING:
    from markdown_it.token import Token

HTML, FRONT_MATTER = "HTML", "front matter"
ADDRESSES, CELLS = "addresses of links", "cells beyond the columns of a table"
_FRONT_MATTER = re.compile(  # of YAML or TOML
    r"---[ \t]*\n(?=[\w-]+[ \t]*:)(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|$)"
    r"|\+\+\+[ \t]*\n(?=[\w-]+[ \t]*=|\[)(.*?\n)\+\+\+[ \t]*(?:\n|$)",
    re.DOTALL,
)
_FOOTNOTE = re.compile(r"( {0,3})\[\^[^\]\s]+\]:[ \t]*")
_INDENT = re.compile(r" {4}| {0,3}\t")  # of the further lines of a footnote
_FOOTNOTE_MARK = re.compile(r"\[\^[^\]\s]+\]")
# "[Anna]: Hello" is no address of a link
_NO_DEFINITION = re.compile(
    r"^( {0,3})\[(?=[^\]\n]+\]:[ \t]*[^\s/.#:@<]+(?:[ \t]|$))", re.MULTILINE
)
_MAX_NESTING = 200
_HTML = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1\s*>|\Z)|</?[A-Za-z][^<>]*>",
    re.DOTALL | re.IGNORECASE,
)
_PARAGRAPH_TAG = re.compile(r"(?=<(?:p|div|h[1-6]|li|tr)\b)", re.IGNORECASE)
_ROW_BEGIN = re.compile(r"[\s>]*\|?")  # of a table in a quotation, too
_CELL_END = re.compile(r"(?<!\\)\|")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def read_markdown(text: str) -> Parsed:
    """Rows of a Markdown file (CommonMark, with tables and ``~~struck~~`` text)."""
    from markdown_it import MarkdownIt

    reader = _Reader()
    if match := _FRONT_MATTER.match(text):
        reader.drop(FRONT_MATTER, match[1] or match[2], row=2)
        text = "\n" * match[0].count("\n") + text[match.end() :]
    text = "\n".join(_without_labels(text.split("\n")))
    for mark in _FOOTNOTE_MARK.finditer(text):
        reader.drop(FOOTNOTE_MARKS, mark[0], 0)
    text = _FOOTNOTE_MARK.sub("", text)
    text = _NO_DEFINITION.sub(r"\1\\[", text)
    reader.source = text.split("\n")
    environment: dict[str, Any] = {}
    parser = MarkdownIt("commonmark", {"maxNesting": _MAX_NESTING}).enable(
        ["table", "strikethrough"]
    )
    for token in parser.parse(text, environment):
        reader.read(token)
    definitions = [
        *environment.get("references", {}).values(),
        *environment.get("duplicate_refs", []),
    ]
    for definition in definitions:
        row = definition["map"][0] + 1
        reader.drop(ADDRESSES, f"{definition['href']} {definition.get('title') or ''}", row)
    return reader.parsed


def _without_labels(lines: Iterable[str]) -> Iterator[str]:
    """Lines without the labels of footnotes, whose text is that of paragraphs, and without the
    indentation of their further lines, which would be code."""
    in_footnote = False
    for line in lines:
        label, indent = _FOOTNOTE.match(line), _INDENT.match(line)
        if label is not None:
            in_footnote = True
            yield label[1] + line[label.end() :]
        elif in_footnote and indent is not None:
            yield line[indent.end() :]
        else:
            in_footnote = in_footnote and not line.strip()
            yield line


class _Reader:
    """Follows the tokens of a file in their order."""

    def __init__(self) -> None:
        self.parsed = Parsed()
        self.source: list[str] = []  # lines of the file
        self._in_heading = False
        self._number = ""  # of the list item that begins
        self._table: Grid | None = None
        self._row = 0  # of the last token that has one

    def drop(self, reason: str, text: str, row: int) -> None:
        """Count a text that is not read."""
        self.parsed.dropped.append(Dropped(reason, text, row))

    def read(self, token: Token) -> None:
        """Add what a block is read as."""
        self._row = token.map[0] + 1 if token.map else self._row
        kind = token.type
        if kind in ("heading_open", "heading_close"):
            self._in_heading = kind == "heading_open"
        elif kind == "list_item_open":
            self._number = f"{token.info}. " if token.info else ""
        elif kind == "list_item_close":
            self._number = ""
        elif kind == "hr":
            self._pause(token.markup, SCENE_BREAK)
        elif kind in ("fence", "code_block"):
            code = f"{token.info}\n{token.content}"
            self.drop(CODE, code, self._row)
            self._pause(code, CODE_BLOCK)
        elif kind == "html_block":
            self._html(token.content)
        elif kind == "inline":
            self._inline(token.children or [])
        else:
            self._read_table(kind)

    def _item(self, text: str, row: int | None = None) -> None:
        if text:
            cells = {"text": self._number + text}
            title = text if self._in_heading else ""
            self.parsed.rows.append(Row(row or self._row, cells, self._in_heading, chapter=title))
            self._number = ""

    def _pause(self, text: str, reason: str) -> None:
        self.parsed.rows.append(Row(self._row, {"text": text}, pause=reason))

    def _html(self, content: str) -> None:
        """The text of an HTML block is an item; its tags and comments are dropped."""
        for match in _HTML.finditer(content):
            self.drop(HTML, match[0], self._row)
        for part in _PARAGRAPH_TAG.split(content):
            self._item(" ".join(html.unescape(_HTML.sub(" ", part)).split()))

    def _inline(self, children: Sequence[Token]) -> None:
        text = " ".join("".join(self._words(children)).split())
        if self._table is not None:
            self._table.add(text)
        else:
            self._item(text)

    def _words(self, children: Sequence[Token]) -> Iterator[str]:
        """The words of inline tokens: text, code, alternative texts of pictures."""
        for token in children:
            if token.type in ("text", "code_inline"):
                yield token.content
            elif token.type in ("softbreak", "hardbreak"):
                yield " "
            elif token.type == "html_inline":
                self.drop(HTML, token.content, self._row)
                yield " " if _LINE_BREAK.fullmatch(token.content) else ""
            for name in ("href", "src", "title"):
                if token.info != "auto" and (address := token.attrGet(name)):
                    self.drop(ADDRESSES, str(address), self._row)
            yield from self._words(token.children or [])

    def _read_table(self, kind: str) -> None:
        if kind == "table_open":
            self._table = Grid()
        if self._table is None:
            return
        table = self._table
        if kind == "tr_open":
            table.begin_row(self._row)
        elif kind == "thead_close":
            table.take_header()
        elif kind == "tr_close" and table.header:
            self._item(table.row_text(), table.row)
            line = _ROW_BEGIN.sub("", self.source[table.row - 1].rstrip(), count=1)
            cells = _CELL_END.split(line)
            self.drop(CELLS, " ".join(cells[len(table.header) :]), table.row)
        elif kind == "table_close":
            self._table = None
            if not table.used:
                self._item(table.names, table.row)
            else:
                self.drop(COLUMNS, " ".join(table.unused), table.row)
