"""Made books: an EPUB of given documents, as publishers' programs write it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from html import escape

# one pixel
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d4944415478da63fcffff"
    "3f0300050001ff2b6d6e0e0000000049454e44ae426082"
)
CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/>
</rootfiles></container>"""
DOCUMENT = """<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">
<head><title/><link rel="stylesheet" href="style.css"/></head><body>{}</body></html>"""


def package(
    names: Sequence[str], title: str = "A Book", author: str = "Ann Author", more: str = ""
) -> str:
    """The package document; ``more``: further elements of the manifest."""
    files = "".join(
        f'<item id="d{i}" href="{name}" media-type="application/xhtml+xml"/>'
        for i, name in enumerate(names)
    )
    spine = "".join(f'<itemref idref="d{i}"/>' for i in range(len(names)))
    return f"""<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:opf="http://www.idpf.org/2007/opf">
<dc:identifier id="id">x</dc:identifier><dc:title>{escape(title)}</dc:title>
<dc:creator opf:role="aut">{escape(author)}</dc:creator><dc:language>en</dc:language></metadata>
<manifest>{files}{more}</manifest><spine>{spine}</spine></package>"""


def epub(bodies: Sequence[str]) -> bytes:
    """A book with a cover whose documents have these bodies, in this order."""
    names = [f"part%20{i}.xhtml" for i in range(len(bodies))]
    image = '<item id="c" href="c.png" media-type="image/png" properties="cover-image"/>'
    files = {f"OEBPS/part {i}.xhtml": DOCUMENT.format(body) for i, body in enumerate(bodies)}
    return archive(files | {"OEBPS/content.opf": package(names, more=image), "OEBPS/c.png": PNG})


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """A ZIP file as an EPUB is: ``mimetype`` first, and the container's description."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        for name, content in ({"META-INF/container.xml": CONTAINER} | dict(files)).items():
            book.writestr(name, content, zipfile.ZIP_DEFLATED)
    return memory.getvalue()


def repacked(book: bytes, leave_out: str = "") -> bytes:
    """The same files but one, not packed: damage is then in the documents themselves."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as copy, zipfile.ZipFile(io.BytesIO(book)) as original:
        for name in original.namelist():
            if name != leave_out:
                copy.writestr(name, original.read(name))
    return memory.getvalue()
