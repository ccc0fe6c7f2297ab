"""The language of a text that is not told, by a library that is installed for it.

Responsible for choosing among the languages that a model knows. Not responsible for their codes or
libraries (languages.py).
"""

from __future__ import annotations

from collections.abc import Collection

from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.text.languages import (
    AUTO,
    check_library,
    chosen,
    failure,
    languages_of,
    library_errors,
)

_NORWEGIAN = ("nb", "nn")  # its two written forms


def resolve(language: str | None, text: str, config: ModelConfig) -> str | None:
    """The language that a model reads a text in, detected if it is ``AUTO`` and there is a choice.

    Raises:
        InputError: the library that detects languages is not installed.
    """
    language = chosen(language, config)
    return detect(text, languages_of(config)) if language == AUTO else language


def detect(text: str, known: Collection[str]) -> str | None:
    """The most likely of the known languages; None if the library knows none of them.

    Raises:
        InputError: the library is not installed, or fails.
    """
    check_library(AUTO)
    try:
        import py3langid

        ranks = py3langid.rank(text)
    except library_errors() as error:
        raise failure(AUTO, error) from error
    for code, _ in ranks:
        code = "no" if code in _NORWEGIAN else code
        if code in known:
            return str(code)
    return None
