"""Items of a .html file or of a document of an .epub, as a person would read it aloud.

Responsible for which parts are items, pauses and chapters. Not responsible for the syntax (lxml:
libxml2's HTML parser, which mends what is broken, expands no entities of the document's own and
opens no other file), for what is not read (unread.py) or for books (epub.py).

A heading starts a chapter, with its text as the title; a paragraph, a list item and a row of a
table are items; a rule is a scene break, and code a pause. Alternative texts of pictures are read
in headings, which often have no other text, and elsewhere if asked for. Rows are numbered, as a
file may have a single line.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import replace

from chatterbox_opt.audio.tags import one_line
from chatterbox_opt.batch.readers.grid import COLUMNS, Grid
from chatterbox_opt.batch.readers.html_state import CELLS, Link, State
from chatterbox_opt.batch.readers.rows import CODE_BLOCK, SCENE_BREAK, Dropped, Parsed, Row
from chatterbox_opt.batch.readers.unread import (
    CODE,
    FOOTNOTE_MARKS,
    PICTURES,
    is_footnote_mark,
    why_not_read,
)

_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    *("address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details"),
    *("dialog", "dir", "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form"),
    *("header", "hgroup", "html", "legend", "li", "main", "ol", "p", "pre", "section", "summary"),
    *("table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul", *_HEADINGS),
)
_ROW_GROUPS = ("thead", "tbody", "tfoot")
_TO_THE_END = 100_000  # rows: of rowspan="0"
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphens and joints without a width
_DOCTYPE = re.compile(r"<!DOCTYPE[^<>\[]*\[[^\]]*\]\s*>", re.IGNORECASE)
_DECLARED = re.compile(
    rb"<\?xml[^<>]*?encoding\s*=\s*[\"']([\w.:-]+)|<meta[^<>]*?charset\s*=\s*[\"']?([\w.:-]+)",
    re.IGNORECASE,
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_HEAD = 2048  # bytes in which an encoding is declared
_MARK_PIECES = 8  # of text, that the mark of a footnote has at most
_PUNCTUATION = tuple(".!?:;,…—–-")


def declared_encoding(content: bytes) -> str | None:
    """The encoding that an HTML or XML file declares; None: none that Python knows.

    What is called Latin-1 is read as Windows-1252, its superset, as browsers do.
    """
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None
    found = _DECLARED.search(content[:_HEAD])
    if found is None:
        return None
    try:
        name = codecs.lookup((found[1] or found[2]).decode("ascii")).name
        "".encode(name)  # a LookupError, if it is no encoding of text
    except (LookupError, ValueError):
        return None
    if name.startswith(("utf-16", "utf-32")):  # the declaration itself could not have been read
        return None
    return "cp1252" if name in ("iso8859-1", "ascii") else name


def read_html(text: str, *, alt_texts: bool) -> Parsed:
    """Rows of an HTML or XHTML file; its title and author are tags.

    Args:
        alt_texts: alternative texts of pictures are read.
    """
    reader = HtmlReader(alt_texts=alt_texts)
    reader.read(text)
    return reader.parsed


def _number(attributes: Mapping[str, str], name: str, default: int) -> int:
    """A whole number from 0 of an element's attributes."""
    value = attributes.get(name, "").strip()
    return int(value) if re.fullmatch("[0-9]{1,5}", value) else default


class HtmlReader:
    """Follows the elements of one document after another, in their order.

    Attributes:
        parsed: the rows so far.
    """

    def __init__(self, *, alt_texts: bool) -> None:
        self.parsed = Parsed()
        self._alt_texts = alt_texts
        self._at = State()

    def read(self, text: str, unread: str = "") -> None:
        """Add the rows of a document.

        Args:
            unread: why all of it is not read, or "".
        """
        from lxml import etree

        self._at = State(unread_at=bool(unread), reason=unread)
        text = _CONTROLS.sub(" ", _DOCTYPE.sub("", text[:_HEAD], count=1) + text[_HEAD:])
        parser = etree.HTMLParser(target=self, encoding="utf-8", no_network=True, huge_tree=True)
        parser.feed(text.encode("utf-8", "replace"))
        parser.close()

    # What lxml calls. It closes every element that it opens, in order.

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        at = self._at
        at.open[tag] += 1
        at.depth += 1
        if at.unread_at:
            at.unread += [" "] * (tag in _BLOCKS)
            return
        reason = why_not_read(tag, attributes, in_pre=at.open["pre"] > 0)
        if reason is not None:
            at.unread_at, at.reason = at.depth, reason
        elif tag in _BLOCKS:
            self._flush()
            self._begin_block(tag, attributes)
        else:
            self._begin_inline(tag, attributes)

    def end(self, tag: str) -> None:
        """An element ends."""
        at = self._at
        if at.unread_at:
            if at.depth == at.unread_at:
                self._end_unread(tag)
        elif tag in CELLS and at.tables == 1:
            at.table.add(self._taken(), *at.span)
        elif tag in _BLOCKS:
            self._flush()
            self._end_block(tag)
        elif tag == "sup":
            at.raised -= 1
        elif tag == "a":
            self._end_link(at.links.pop())
        at.open[tag] -= 1
        at.depth -= 1

    def data(self, text: str) -> None:
        """Text between tags."""
        (self._at.unread if self._at.unread_at else self._at.pieces).append(text)

    def comment(self, text: str) -> None:
        """A comment, or a section of XML that is text."""
        if text.startswith("[CDATA["):
            self.data(text.removeprefix("[CDATA[").removesuffix("]]"))

    def close(self) -> None:
        """The document ends."""
        self._item(self._taken())

    def _end_unread(self, tag: str) -> None:
        text = " ".join("".join(self._at.unread).split())
        reason = self._at.reason
        self._at.unread_at, self._at.unread = 0, []
        if tag == "title":
            self._tag(title=text)
        elif reason:
            self._drop(reason, text)
        if reason == CODE:
            self._flush()
            self._pause(text, CODE_BLOCK)

    def _begin_inline(self, tag: str, attributes: Mapping[str, str]) -> None:
        at = self._at
        if tag == "br":
            self._line_break()
        elif tag == "hr":
            self._flush()
            self._pause("---", SCENE_BREAK)
        elif tag == "img":
            self._picture(attributes.get("alt", ""))
        elif tag == "meta" and attributes.get("name", "").lower() == "author":
            self._tag(author=attributes.get("content", ""))
        elif tag == "sup":
            at.raised += 1
            for link in filter(None, at.links[-1:]):
                link.raised = True
        elif tag == "a":
            leads_into = "#" in attributes.get("href", "")
            at.links.append(Link(len(at.pieces), at.raised > 0) if leads_into else None)

    def _begin_block(self, tag: str, attributes: Mapping[str, str]) -> None:
        at = self._at
        if tag in _HEADINGS:
            at.heading = True
        elif tag == "ol":
            at.lists.append(_number(attributes, "start", 1))
        elif tag == "ul":
            at.lists.append(None)
        elif tag == "li":
            self._begin_list_item(attributes)
        elif tag == "table":
            at.tables += 1
            at.table = Grid() if at.tables == 1 else at.table
        elif at.tables == 1:
            self._begin_table_part(tag, attributes)

    def _begin_list_item(self, attributes: Mapping[str, str]) -> None:
        at = self._at
        number = at.lists[-1] if at.lists else None
        at.number = ""
        if number is not None:
            number = _number(attributes, "value", number)
            at.number, at.lists[-1] = f"{number}. ", number + 1

    def _begin_table_part(self, tag: str, attributes: Mapping[str, str]) -> None:
        at = self._at
        if tag == "tr":
            at.table.begin_row()
            at.is_header = True
        elif tag in _ROW_GROUPS:
            at.table.begin_group()
        elif tag in CELLS:
            at.is_header = at.is_header and tag == "th"
            rows = _number(attributes, "rowspan", 1) or _TO_THE_END
            at.span = (_number(attributes, "colspan", 1) or 1, rows)

    def _end_block(self, tag: str) -> None:
        at = self._at
        if tag in _HEADINGS:
            at.heading = False
        elif tag in ("ol", "ul"):
            at.lists.pop()
        elif tag == "tr" and at.tables == 1:
            is_header = at.is_header and len(at.table.cells) > 1 and not at.table.header
            if is_header and not at.table.used:
                at.table.take_header()
            else:
                self._item(at.table.row_text())
        elif tag == "table":
            at.tables -= 1
            if not at.tables:
                self._end_table(at.table)

    def _end_table(self, table: Grid) -> None:
        if table.used:
            self._drop(COLUMNS, " ".join(table.unused))
        else:
            self._item(table.names)

    def _line_break(self) -> None:
        """A space; in a heading, whose lines are a number and a name, a comma."""
        pieces = self._at.pieces
        text = pieces[-1].rstrip() if pieces and self._at.heading else ""
        pieces.append(", " if text and not text.endswith(_PUNCTUATION) else " ")

    def _picture(self, text: str) -> None:
        if self._alt_texts or self._at.heading:
            self._at.pieces.append(f" {text} ")
        else:
            self._drop(PICTURES, text)

    def _end_link(self, link: Link | None) -> None:
        """Take the mark of a footnote out of the text."""
        if link is None or not 0 < len(self._at.pieces) - link.start <= _MARK_PIECES:
            return
        text = "".join(self._at.pieces[link.start :]).strip()
        if is_footnote_mark(text, raised=link.raised):
            del self._at.pieces[link.start :]
            self._drop(FOOTNOTE_MARKS, text)

    def _taken(self) -> str:
        """The text so far, which ends here."""
        text = " ".join(_INVISIBLE.sub("", "".join(self._at.pieces)).split())
        self._at.pieces.clear()
        return text

    def _flush(self) -> None:
        """End an item; in a cell of a table, a word."""
        if self._at.in_cell:
            self._at.pieces.append(" ")
        else:
            self._item(self._taken())

    def _item(self, text: str) -> None:
        if not text:
            return
        at, rows = self._at, self.parsed.rows
        title = one_line(text) if at.heading else ""
        rows.append(Row(len(rows) + 1, {"text": at.number + text}, at.heading, chapter=title))
        at.number = ""

    def _pause(self, text: str, reason: str) -> None:
        rows = self.parsed.rows
        rows.append(Row(len(rows) + 1, {"text": text}, pause=reason))

    def _drop(self, reason: str, text: str) -> None:
        if text:
            self.parsed.dropped.append(Dropped(reason, text, len(self.parsed.rows) + 1))

    def _tag(self, title: str = "", author: str = "") -> None:
        """Note the first title and the first author."""
        tags = self.parsed.tags
        title, author = tags.title or one_line(title), tags.author or one_line(author)
        self.parsed.tags = replace(tags, title=title, author=author)
