"""The archive that an .epub is: a ZIP file of documents, read in memory and within bounds.

Responsible for archives that are damaged, encrypted, or made to fill the memory, and for XML of
which the same is true. Not responsible for what the documents say (epub.py). Nothing is unpacked to
disk.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chatterbox_opt.errors import InputError, first_line
from chatterbox_opt.utils.damage import DAMAGE_ERRORS

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

MAX_ENTRIES = 50_000
MAX_DOCUMENT = 16 << 20  # bytes of one document, unpacked; a long novel has three in all
MAX_TOTAL = 128 << 20  # bytes of all that is read
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that an EPUB may have
_ENCRYPTED = 1  # bit of an entry's flags
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class Archive:
    """An open archive.

    Attributes:
        name: of the file, for messages.
    """

    def __init__(self, name: str, file: zipfile.ZipFile) -> None:
        self.name = name
        self._file = file
        self._left = MAX_TOTAL

    @classmethod
    @contextmanager
    def open(cls, name: str, content: bytes) -> Iterator[Archive]:
        """Open the content of a file while the block runs.

        Raises:
            InputError: no ZIP file, damaged, or too many entries.
        """
        try:
            file = zipfile.ZipFile(io.BytesIO(content))
        except (*DAMAGE_ERRORS, OSError) as error:
            raise InputError(
                f"{name} is no EPUB, or is damaged ({first_line(error)}): get it again"
            ) from error
        with file:
            if len(file.infolist()) > MAX_ENTRIES:
                raise InputError(
                    f"{name} has {len(file.infolist()):,} files in it; {MAX_ENTRIES:,} are read"
                )
            yield cls(name, file)

    def has(self, path: str) -> bool:
        """Whether there is an entry of this path."""
        return path in self._file.NameToInfo

    def read(self, path: str, most: int = MAX_DOCUMENT) -> bytes:
        """The content of an entry.

        Args:
            most: bytes.

        Raises:
            InputError: there is none, it is damaged or encrypted, or larger than it may be.
        """
        most = min(most, self._left)
        try:
            entry = self._file.getinfo(path)
        except KeyError as error:
            raise InputError(f"{self.name} has no '{path}' in it: get the file again") from error
        if entry.flag_bits & _ENCRYPTED:
            raise InputError(f"{self.name} is encrypted, so it cannot be read: decrypt it first")
        if entry.compress_type not in _METHODS:
            raise InputError(
                f"{self.name} has '{path}' packed by a method that no EPUB has: pack it again"
            )
        try:
            with self._file.open(entry) as opened:
                content = opened.read(most + 1)
        except (*DAMAGE_ERRORS, OSError, zlib.error) as error:
            raise InputError(
                f"{self.name} is damaged at '{path}' ({first_line(error)}): get it again"
            ) from error
        if len(content) > most:
            raise InputError(
                f"{self.name} is not read: unpacked, '{path}' is larger than a book's "
                f"({MAX_DOCUMENT >> 20} MiB a document, {MAX_TOTAL >> 20} MiB in all)"
            )
        self._left -= len(content)
        return content

    def xml(self, path: str) -> Element:
        """The root element of an XML document; no entities of its own are expanded.

        Raises:
            InputError: as ``read``; it is not well-formed, or declares entities.
        """
        from lxml import etree

        content = self.read(path)
        # the marks of UTF-16 hide the declaration
        decoded = content.decode("utf-16", "ignore") if content[:2] in _UTF16_MARKS else ""
        if b"<!ENTITY" in content or "<!ENTITY" in decoded:
            raise InputError(f"{self.name} declares entities in '{path}': such a book is not read")
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True,
            remove_pis=True,
        )  # fmt: skip
        try:
            return etree.fromstring(content, parser)
        except (etree.XMLSyntaxError, ValueError) as error:
            raise InputError(
                f"{self.name} is damaged at '{path}' ({first_line(error)}): get it again"
            ) from error
