"""The languages that can be asked for, and the libraries that some of them need.

Responsible for the codes, for which kind of model knows which, and for what must be installed. Not
responsible for what these libraries do (tokenizers/language_steps.py) or for detecting a language.
"""

from __future__ import annotations

import importlib.util

from chatterbox_opt.config.model_config import MULTILINGUAL_TEXT
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.arguments import shown

DEFAULT = "en"
AUTO = "auto"  # in place of a code: detected in the text
LANGUAGES = {  # upstream mtl_tts.py, SUPPORTED_LANGUAGES
    "ar": "Arabic", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish",
    "sw": "Swahili", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip
_EXTRA = 'pip install "chatterbox-opt[languages]"'
_FROM_SOURCE = "pip install git+https://github.com/Vuizur/add-stress-to-epub"
LIBRARIES = {  # language or AUTO -> package that is imported, and how it is installed
    AUTO: ("py3langid", _EXTRA),
    "he": ("dicta_onnx", _EXTRA),
    "ja": ("pykakasi", _EXTRA),
    "ru": ("russian_text_stresser", _FROM_SOURCE),
    "zh": ("spacy_pkuseg", _EXTRA),
}


def check_language(language: object) -> str | None:
    """The code of a language in small letters, or ``AUTO``; None stays None.

    Raises:
        InputError: not one of ``LANGUAGES``.
    """
    if language is None:
        return None
    if not isinstance(language, str):
        raise InputError(f"language is {shown(language)}; give a code such as de, as a str")
    if (code := language.lower()) not in LANGUAGES and code != AUTO:
        raise InputError(f"language is {shown(language)}; known: {', '.join(LANGUAGES)}, {AUTO}")
    return code


def languages_of(kind: str) -> tuple[str, ...]:
    """The codes that a kind of model knows.

    Args:
        kind: ``ModelConfig.text``.
    """
    return tuple(LANGUAGES) if kind == MULTILINGUAL_TEXT else (DEFAULT,)


def check_model(language: str | None, kind: str) -> None:
    """Check that a model of this kind can read the language, here.

    Raises:
        InputError: the model does not know it, or its library is not installed.
    """
    if language is None:
        return
    if language != AUTO and language not in (known := languages_of(kind)):
        raise InputError(
            f"this model does not know the language {language} ({LANGUAGES[language]}), only "
            f"{', '.join(known)}: use --model multilingual"
        )
    if language in LIBRARIES and kind == MULTILINGUAL_TEXT:
        check_library(language)


def remark(language: str | None, kind: str) -> str:
    """One line if a model that knows several languages is not told which, or ""."""
    if language is not None or kind != MULTILINGUAL_TEXT:
        return ""
    return "no language is given, so the model guesses it: pass --language de, or the text's own"


def check_library(language: str) -> None:
    """Raise InputError if the library of a language is not installed."""
    package, command = LIBRARIES[language]
    if importlib.util.find_spec(package) is None:
        name = LANGUAGES.get(language, f"the language {AUTO}")
        raise InputError(f"{name} needs the library {package}: {command}")
