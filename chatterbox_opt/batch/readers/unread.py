"""Which elements of an HTML document no reader of a page would say, and why.

Responsible for the rules, by names, roles and attributes. Not responsible for how a document is
followed (html.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

FOOTNOTE_MARKS, FOOTNOTES, PAGES = "footnote marks", "footnotes", "page numbers"
PICTURES, CODE, CONTENTS = "texts of pictures", "code blocks", "tables of contents"
HIDDEN, NAVIGATION = "hidden parts", "navigation"
MEDIA, READINGS = "drawings, formulas and controls", "readings above characters"
NO_WORDS = ""  # reason of what is no text: it is not counted

_ELEMENTS = {
    "script": NO_WORDS,
    "style": NO_WORDS,
    "template": NO_WORDS,
    "title": NO_WORDS,
    "svg": MEDIA,
    "math": MEDIA,
    "object": MEDIA,
    "audio": MEDIA,
    "video": MEDIA,
    "iframe": MEDIA,
    "canvas": MEDIA,
    "button": MEDIA,
    "select": MEDIA,
    "textarea": MEDIA,
    "datalist": MEDIA,
    "noscript": MEDIA,
    "rt": READINGS,
    "rp": READINGS,
    "nav": NAVIGATION,
}
# values of epub:type, and of role behind "doc-"
_ROLES = {
    "noteref": FOOTNOTE_MARKS,
    "backlink": FOOTNOTE_MARKS,
    "footnote": FOOTNOTES,
    "endnote": FOOTNOTES,
    "rearnote": FOOTNOTES,
    "pagebreak": PAGES,
    "toc": CONTENTS,
    "landmarks": CONTENTS,
    "page-list": CONTENTS,
    "loi": CONTENTS,
    "lot": CONTENTS,
}
_RAISED_MARK = re.compile(r"[\[(]?(?:\d{1,4}|[*†‡§¶]+|[a-z]|[ivxlc]{1,6})[\])]?")
_MARK = re.compile(r"\[\d{1,4}\]|[*†‡§¶]+")
_NO_DISPLAY = re.compile(r"display\s*:\s*none", re.IGNORECASE)


def why_not_read(tag: str, attributes: Mapping[str, str], *, in_pre: bool) -> str | None:
    """Why an element with all that is in it is not read; None: it is.

    Args:
        in_pre: it is in preformatted text.
    """
    if tag in _ELEMENTS:
        return _ELEMENTS[tag]
    if tag == "code" and in_pre:
        return CODE
    roles = f"{attributes.get('epub:type', '')} {attributes.get('role', '')}".split()
    for role in roles:
        if (name := role.removeprefix("doc-")) in _ROLES:
            return _ROLES[name]
    if "hidden" in attributes or _NO_DISPLAY.search(attributes.get("style", "")):
        return HIDDEN
    return None


def is_footnote_mark(text: str, *, raised: bool) -> bool:
    """Whether the text of a link into a document is the mark of a footnote.

    Args:
        raised: in superscript, where a bare number is enough.
    """
    return (_RAISED_MARK if raised else _MARK).fullmatch(text) is not None
