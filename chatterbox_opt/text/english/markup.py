"""HTML, Markdown and web addresses to the text that a reader sees or says.

Responsible for tags, entities, emphasis, links, headings, list marks, code marks, emoticons, URLs
and e-mail addresses; reports what it drops. Not responsible for numbers, signs or other scripts.
"""

from __future__ import annotations

import html
import re
from re import Match
from urllib.parse import unquote

from chatterbox_opt.text.english.reading import Reading

_BLOCKS = (
    "address|article|aside|blockquote|body|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|"
    "head|header|html|li|main|nav|ol|p|pre|section|speak|summary|table|tbody|tfoot|thead|title|tr|ul"
)
_CELLS = "br|td|th|option|button|label|input|img|audio|video|source|break|hr|col|meta|link"
_INLINE = (
    "a|abbr|b|big|cite|code|del|em|emphasis|font|i|ins|kbd|mark|phoneme|prosody|q|s|samp|say-as|"
    "small|span|strike|strong|sub|sup|u|var|voice"
)
_ATTRIBUTES = r"""(?:\s+[\w:-]+(?:\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+)))*\s*/?"""


def _tag(names: str) -> str:
    return rf"(?i:</?(?:{names}){_ATTRIBUTES}>)"


_HIDDEN = re.compile(
    r"(?is)<!--.{0,5000}?-->|<(script|style)\b.{0,20000}?</\1\s*>|<!doctype[^<>]*>"
)
_HORIZONTAL_RULE = re.compile(rf"(?i:<hr{_ATTRIBUTES}>)")
_BLOCK_TAG = re.compile(_tag(_BLOCKS))
_CELL_TAG = re.compile(_tag(_CELLS))
# of other elements only what cannot be "a < b": a closing tag, or one with attributes
_INLINE_TAG = re.compile(
    rf"{_tag(_INLINE)}|</[A-Za-z][\w:-]*\s*>|<[A-Za-z][\w:-]*(?=\s+[\w:-]+=){_ATTRIBUTES}>"
)
_RAISED = re.compile(rf"(?i:<sup{_ATTRIBUTES}>)([-−+]?\d{{1,20}})(?i:</sup>)")
_RAISED_SIGNS = str.maketrans("0123456789-−+", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻⁺")
_NOTE_TAGS = re.compile(  # a raised link, or a raised number in brackets
    rf"(?i)<sup{_ATTRIBUTES}>\s*<a{_ATTRIBUTES}>[^<]{{0,20}}</a>\s*</sup>"
    rf"|<a{_ATTRIBUTES}>\s*<sup{_ATTRIBUTES}>[^<]{{0,20}}</sup>\s*</a>"
    rf"|<sup{_ATTRIBUTES}>\s*\[[^<\]]{{1,20}}\]\s*</sup>"
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][\da-fA-F]{1,6}|[A-Za-z]\w{1,30});")
_BARE_ENTITY = re.compile(r"&(amp|nbsp|lt|gt|quot|apos)(?![\w;])")
_NESTED_AMPERSANDS = re.compile(r"&(?:amp;)+")

_FENCE = re.compile(r"(?m)^[ \t]*(?:`{3,}|~{3,})(?P<gone>[^`\n]*)$")
_LINK = re.compile(
    r"!?\[([^\[\]\n]{0,500})\]"
    r"\((?P<gone>(?=[^()\s]*[/.#:@])[^()\s]{1,2000})(?:[ \t]+\"[^\"\n]*\")?\)"
)
_NOTE = re.compile(r"(?m)^[ ]{0,3}\[\^[^\[\]\s]{1,50}\]:[ \t]*")  # its text follows
_NOTE_MARK = re.compile(r"\[\^[^\[\]\s]{1,50}\]")
_AUTOLINK = re.compile(r"<(?:mailto:)?((?:https?|ftp)://[^<>\s]+|[^<>\s@]+@[^<>\s@]+)>")
_CODE = re.compile(r"(?<!`)(`{1,3})([^`\n]{1,500})\1(?!`)")
_HEADING = re.compile(r"(?m)^[ ]{0,3}#{1,6}[ \t]+([^\n]*)$")
_UNDERLINED = re.compile(r"(?m)^([^\n]*[^\s.!?…\"”|])[ \t]*\n[ ]{0,3}(?:={2,}|-{2,})[ \t]*$")
_SCENE = re.compile(r"(?m)^[ \t]*(?:([*_=~#•·-])(?:[ \t]*\1){2,}|[⁂❦❧])[ \t]*$")
_QUOTE = re.compile(r"(?m)^[ \t]*(?:>[ \t]?)+")
_FIRST_BULLET = re.compile(r"(^|\n[ \t]*\n|[.!?:;,][ \t]*\n)[ \t]*[*+•‣◦▪–—-][ \t]+")
_BULLET = re.compile(r"\n[ \t]*[*+•‣◦▪–—-][ \t]+")
_TABLE_RULE = re.compile(r"(?m)^(?=[^\n]*\|)(?=[^\n]*--)[-: \t|]+$")
_CELL_EDGE = re.compile(r"(?<=[^\s|])[ \t]+\|[ \t]+(?=[^\s|])")
_EMOTICON = re.compile(r"(?<!\S)[:;]['’]?-?[()DPpOo|/\\](?!\S)")

_HOST = r"[\w-]+(?:\.[\w-]+)*"
_MAIL = r"(?<![\w.+-])(?:mailto:)?[\w.+-]+@[\w-]+(?:\.[\w-]+)+"
_URL = (
    r"(?<![\w./])(?i:(?:https?|ftp)://|www\.)[^\s\"()<>?#]+"
    rf"|(?<![\w.@-]){_HOST}\.(?:com|org|net|edu|gov|io|ai|dev|info|uk)\b(?:[/:][^\s\"()<>?#]+)?"
)
# an address without a query matches too, or each part of it would be a start of its own
_QUERY = re.compile(rf"({_MAIL}|{_URL})(?P<gone>/?[?#][^\s\"()<>]*[^\s\"()<>.,!?;:'])?")
_ADDRESS = re.compile(f"{_MAIL}|{_URL}")
ADDRESS_SIGNS = {
    ".": "dot", "@": "at", "/": "slash", "-": "dash", "_": "underscore", ":": "colon", "+": "plus",
    "~": "tilde", "=": "equals", "&": "and", "%": "percent",
}  # fmt: skip


def read_markup(reading: Reading) -> Reading:
    """Return the text without markup; paragraphs, headings and scene breaks are set apart.

    A heading gets an empty line before and after it, a scene break is a paragraph ``---``.

    Args:
        reading: lines end in a line feed.
    """
    reading = reading.drop(_FENCE, "mark of a code block", "")
    return _read_addresses(_read_lines(_read_links(_read_html(reading))))


def _read_html(reading: Reading) -> Reading:
    reading = reading.drop(_HIDDEN, "hidden in HTML")
    reading = reading.drop(_HORIZONTAL_RULE, "HTML tag", "\n\n---\n\n")
    reading = reading.drop(_BLOCK_TAG, "HTML tag", "\n\n")
    reading = reading.drop(_CELL_TAG, "HTML tag", "\n")
    reading = reading.drop(_NOTE_TAGS, "footnote mark", "")
    reading = reading.replace(_RAISED, lambda m: m[1].translate(_RAISED_SIGNS))
    reading = reading.drop(_INLINE_TAG, "HTML tag", "")
    reading = reading.replace(_NESTED_AMPERSANDS, "&")
    reading = reading.replace(_BARE_ENTITY, r"&\1;")
    return reading.replace(_ENTITY, lambda m: html.unescape(m[0]))


def _read_links(reading: Reading) -> Reading:
    reading = reading.drop(_NOTE, "footnote mark", "\n\n")
    reading = reading.drop(_NOTE_MARK, "footnote mark", "")
    reading = reading.drop(_LINK, "target of a link", r"\1")
    reading = reading.replace(_AUTOLINK, r" \1 ")
    return reading.replace(_CODE, r"\2")


def _read_lines(reading: Reading) -> Reading:
    reading = reading.replace(_UNDERLINED, "\n\n\\1\n\n")
    reading = reading.replace(_SCENE, "\n\n---\n\n")
    reading = reading.replace(_TABLE_RULE, "")
    reading = reading.replace(_CELL_EDGE, ", ")
    reading = reading.replace(_HEADING, lambda m: "\n\n" + m[1].rstrip(" \t#") + "\n\n")
    reading = reading.replace(_QUOTE, "")
    reading = reading.replace(_FIRST_BULLET, r"\1")
    reading = reading.replace(_BULLET, ", ")
    return reading.drop(_EMOTICON, "emoticon")


def _read_addresses(reading: Reading) -> Reading:
    reading = reading.drop(_QUERY, "query of a web address", r"\1")
    return reading.replace(_ADDRESS, _address)


def _address(m: Match[str]) -> str:
    """Read "https://www.example.com/a" as "example dot com slash a"."""
    whole = m[0].lower() if m[0].isupper() else m[0]
    body = whole.rstrip(".,!?;:'/")
    address = re.sub(r"^(?i:mailto:|(?:https?|ftp)://)?(?i:www\.)?", "", body)
    words = re.sub(r"[^\w\s]|_", _sign, unquote(address))
    return " ".join(words.split()) + whole[len(body) :].strip("/")


def _sign(m: Match[str]) -> str:
    return f" {ADDRESS_SIGNS.get(m[0], '')} "
