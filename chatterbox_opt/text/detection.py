"""The language of a text that is not told, by a library that is installed for it.

Responsible for choosing among the languages that a model knows. Not responsible for their codes or
libraries (languages.py).
"""

from __future__ import annotations

from collections.abc import Collection

from chatterbox_opt.text.languages import AUTO, check_library, languages_of

_NORWEGIAN = ("nb", "nn")  # its two written forms


def resolve(language: str | None, text: str, kind: str) -> str | None:
    """The language, detected in the text if it is ``AUTO``.

    Args:
        kind: ``ModelConfig.text``.

    Raises:
        InputError: the library that detects languages is not installed.
    """
    if language != AUTO:
        return language
    known = languages_of(kind)
    return known[0] if len(known) == 1 else detect(text, known)


def detect(text: str, known: Collection[str]) -> str | None:
    """The most likely of the known languages; None if the library knows none of them.

    Raises:
        InputError: the library is not installed.
    """
    check_library(AUTO)
    import py3langid

    for code, _ in py3langid.rank(text):
        code = "no" if code in _NORWEGIAN else code
        if code in known:
            return str(code)
    return None
