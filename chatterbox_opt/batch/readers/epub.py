"""Items of an .epub: its documents in the order of the spine.

Responsible for the book: which documents there are, its title, author and cover, and titles of
chapters that have no heading. Not responsible for what is in a document (html.py) or for the
archive (archive.py).

EPUB 2 and 3. Titles of a chapter are its headings; a document without one gets its title from the
table of contents, if it is there. Documents outside the linear order, and the table of contents as
a document, are counted and not read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from chatterbox_opt.audio.tags import MAX_COVER, Tags, is_picture, one_line
from chatterbox_opt.batch.readers.archive import Archive
from chatterbox_opt.batch.readers.html import HtmlReader, declared_encoding
from chatterbox_opt.batch.readers.rows import Parsed, Row
from chatterbox_opt.batch.readers.unread import CONTENTS
from chatterbox_opt.errors import InputError
from chatterbox_opt.text.chunking import has_speech
from chatterbox_opt.text.decoding import decode

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
ASIDE = "documents outside the reading order"
MAX_PARTS = 10_000  # documents of a spine
_DOCUMENTS = ("application/xhtml+xml", "text/html", "text/x-oeb1-document")
_NCX = "application/x-dtbncx+xml"
_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")  # only fonts


def read_epub(name: str, content: bytes, encoding: str | None, *, alt_texts: bool) -> Parsed:
    """Rows of a book.

    Args:
        name: of the file, for messages.
        encoding: of its documents; None: as they declare.
        alt_texts: alternative texts of pictures are read.

    Raises:
        InputError: no EPUB, damaged, encrypted, or larger than a book is.
    """
    with Archive.open(name, content) as archive:
        _check_encryption(archive)
        book = _Book.read(archive)
        titles = book.titles(encoding)
        reader = HtmlReader(alt_texts=alt_texts)
        rows = reader.parsed.rows
        for part in book.parts():
            text = _text(archive, part.path, encoding)
            first = len(rows)
            reader.read(text, CONTENTS if part.is_contents else "" if part.is_linear else ASIDE)
            title = titles.get(part.path, "")
            if title and not any(row.chapter for row in rows[first:]):
                _add_title(rows, first, title)
        reader.parsed.tags = book.tags()
    tags = reader.parsed.tags
    title = f"'{tags.title}'" if tags.title else "a book without a title"
    author = f" by {tags.author}" if tags.author else ""
    reader.parsed.notes.append(f"{title}{author}, with{'' if tags.cover else 'out'} a cover")
    return reader.parsed


def _add_title(rows: list[Row], first: int, title: str) -> None:
    """Let a chapter begin at the first row from ``first`` that is spoken."""
    for i in range(first, len(rows)):
        if not rows[i].pause and has_speech(rows[i].cells["text"]):
            rows[i] = replace(rows[i], starts_chapter=True, chapter=title)
            return


def _text(archive: Archive, path: str, encoding: str | None) -> str:
    content = archive.read(path)
    return decode(f"{archive.name}: {path}", content, encoding or declared_encoding(content))


def _check_encryption(archive: Archive) -> None:
    """Raise InputError if more than fonts are encrypted."""
    if not archive.has(ENCRYPTION):
        return
    for data in archive.xml(ENCRYPTION).iter("{*}EncryptedData"):
        method = data.find("{*}EncryptionMethod")
        if method is None or method.get("Algorithm") not in _FONTS:
            raise InputError(
                f"{archive.name} is protected against copying (DRM), so it cannot be read: get a "
                "copy without it from its publisher"
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """A document of the spine.

    Attributes:
        path: in the archive.
        is_linear: in the reading order.
        is_contents: the table of contents.
    """

    path: str
    is_linear: bool
    is_contents: bool


@dataclass(frozen=True, slots=True)
class _Book:
    """The package document.

    Attributes:
        path: of it, in the archive.
        root: its root element.
        files: the elements ``item`` of its manifest, by id.
    """

    archive: Archive
    path: str
    root: Element
    files: dict[str, Element]

    @classmethod
    def read(cls, archive: Archive) -> _Book:
        """Find and read the package document."""
        found = archive.xml(CONTAINER).find(".//{*}rootfile")
        path = "" if found is None else found.get("full-path", "")
        if not path:
            raise InputError(f"{archive.name} is no EPUB: {CONTAINER} names no package document")
        root = archive.xml(path)
        files = {item.get("id", ""): item for item in root.iterfind("{*}manifest/{*}item")}
        return cls(archive, path, root, files)

    def parts(self) -> Iterator[_Part]:
        """The documents in their order, each once."""
        references = self.root.findall("{*}spine/{*}itemref")
        if not 0 < len(references) <= MAX_PARTS:
            raise InputError(
                f"{self.archive.name} has {len(references)} documents in its reading order; 1 to "
                f"{MAX_PARTS:,} are read: repair the file"
            )
        seen = set()
        for reference in references:
            id = reference.get("idref", "")
            item = self.files.get(id)
            if item is None:
                raise InputError(
                    f"{self.archive.name} lists '{id}' in its reading order and nowhere else: the "
                    "file is damaged, get it again"
                )
            href = item.get("href", "")
            path = _resolved(self.path, href)
            if path is None:
                raise InputError(
                    f"{self.archive.name} refers to '{href}', which is outside of it: such a book "
                    "is not read"
                )
            if item.get("media-type", "").lower() in _DOCUMENTS and path not in seen:
                seen.add(path)
                is_contents = "nav" in item.get("properties", "").split()
                yield _Part(path, reference.get("linear") != "no", is_contents)

    def titles(self, encoding: str | None) -> dict[str, str]:
        """Titles by the path of the document that they lead to, from the table of contents.

        Args:
            encoding: of documents; EPUB 2's NCX is XML, and declares its own.
        """
        from lxml import etree

        files = self.files.values()
        nav = [item for item in files if "nav" in item.get("properties", "").split()]
        ncx = [item for item in files if item.get("media-type") == _NCX]
        titles: dict[str, str] = {}
        for item in [*nav, *ncx][:1]:
            path = _resolved(self.path, item.get("href", ""))
            if path is None or not self.archive.has(path):
                continue
            parser = etree.HTMLParser(encoding="utf-8", no_network=True)
            text = _text(self.archive, path, encoding if item in nav else None)
            root = etree.fromstring(text.encode() or b" ", parser)
            for href, title in () if root is None else _entries(root):
                if title and (leads_to := _resolved(path, href)):
                    titles.setdefault(leads_to, title)
        return titles

    def tags(self) -> Tags:
        """Title, author and cover."""
        titles = self._metadata("title")
        authors = [
            element
            for element in self._metadata("creator")
            if (element.get("{http://www.idpf.org/2007/opf}role") or "aut") == "aut"
        ]
        return Tags(
            one_line("".join(titles[0].itertext())) if titles else "",
            one_line(", ".join("".join(author.itertext()) for author in authors)),
            self._cover(),
        )

    def _metadata(self, name: str) -> list[Element]:
        return self.root.findall(f"{{*}}metadata//{{http://purl.org/dc/elements/1.1/}}{name}")

    def _cover(self) -> bytes:
        """The cover's content, if it is there and a JPEG or PNG."""
        named = {
            meta.get("content", "")
            for meta in self.root.iterfind("{*}metadata//{*}meta")
            if meta.get("name") == "cover"
        }
        for id, item in self.files.items():
            if "cover-image" in item.get("properties", "").split() or id in named:
                path = _resolved(self.path, item.get("href", "")) or ""
                content = self.archive.read(path, MAX_COVER) if self.archive.has(path) else b""
                if is_picture(content):
                    return content
        return b""


def _resolved(base: str, href: str) -> str | None:
    """The path in the archive that a reference in ``base`` leads to; None: it leads elsewhere."""
    try:
        parts = urlsplit(href)
    except ValueError:  # "//["
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(parts.path)))
    leads_out = path.startswith(("/", "../")) or path == ".." or "\\" in path
    return None if parts.scheme or parts.netloc or leads_out else path


def _entries(root: Element) -> Iterator[tuple[str, str]]:
    """References and titles of a table of contents: EPUB 2's NCX, or EPUB 3's list of links."""
    for point in root.iter("navpoint"):
        label, target = point.find("navlabel"), point.find("content")
        if label is not None and target is not None:
            yield target.get("src", ""), one_line("".join(label.itertext()))
    for nav in root.iter("nav"):
        if nav.get("epub:type") == "toc":
            for link in nav.iter("a"):
                yield link.get("href", ""), one_line("".join(link.itertext()))
