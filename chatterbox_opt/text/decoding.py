"""Decodes the bytes of a text file.

Responsible for byte order marks, UTF-8, encodings that are asked for, and line breaks. Not
responsible for what the text means.
"""

from __future__ import annotations

import codecs

from chatterbox_opt.errors import InputError

# the longer marks first: that of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 1 << 16  # bytes that an encoding is guessed from
_GUESSED = ("cp1252", "cp1250", "cp1251", "cp1253", "cp932", "gb18030", "big5", "cp949", "koi8_r",
            "mac_roman", "cp437")  # fmt: skip


def decode(name: str, content: bytes, encoding: str | None = None) -> str:
    """Decode a file; its line breaks become ``\\n``.

    Args:
        name: of the file, for messages.
        encoding: a name that Python knows; None is that of the byte order mark, else UTF-8.

    Raises:
        InputError: unknown encoding, or bytes that are not of it; the message names a likely one.
    """
    chosen = encoding or next(
        (codec for mark, codec in _MARKS if content.startswith(mark)), "utf-8"
    )
    check_encoding(chosen)
    try:
        text = content.decode(chosen)
    except UnicodeError as error:
        row = content.count(b"\n", 0, getattr(error, "start", 0)) + 1
        remedy = "give the right --encoding" if encoding else _remedy(content)
        raise InputError(f"{name} row {row} is not {chosen.upper()}: {remedy}") from error
    if "\0" in text and encoding is None:
        raise InputError(f"{name} is not UTF-8 text, it has NUL characters: {_remedy(content)}")
    # "\r\r\n" is what a program makes of "\r\n" that adds another "\r"
    text = text.replace("\ufeff", "").replace("\r\r\n", "\n").replace("\r\n", "\n")
    return text.replace("\r", "\n")


def check_encoding(encoding: str) -> None:
    """Raise InputError if Python has no text encoding of that name."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as error:  # a name with a NUL is a ValueError
        raise InputError(
            f"--encoding {encoding!r} is not known; give one such as cp1252, utf-16 or gb18030"
        ) from error


def _remedy(content: bytes) -> str:
    """What to do with a file that is not UTF-8."""
    likely = " or ".join(_likely(content[:_SAMPLE]))
    if not likely:
        return "save the file as UTF-8, or give its --encoding"
    return f"save the file as UTF-8, or give its encoding (likely: --encoding {likely})"


def _likely(content: bytes) -> list[str]:
    """At most two encodings, the likelier first."""
    import charset_normalizer

    even, odd = content[0::2].count(0), content[1::2].count(0)
    if even or odd:  # ASCII in UTF-16 has a zero in every other byte
        return ["utf-16-be" if even > odd else "utf-16-le"]
    found = charset_normalizer.from_bytes(content, cp_isolation=list(_GUESSED))
    names = list(dict.fromkeys(n for m in found for n in [m.encoding, *m.could_be_from_charset]))
    if "cp1252" in names and names[0] == "cp1250":  # equal for most of Western Europe's letters
        names.remove("cp1252")
        names.insert(0, "cp1252")
    return names[:2]
