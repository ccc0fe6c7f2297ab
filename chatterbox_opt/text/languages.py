"""The languages that can be asked for, and the libraries that some of them need.

Responsible for the codes, for which kind of model knows which, and for what must be installed. Not
responsible for what these libraries do (tokenizers/language_steps.py) or for detecting a language.
"""

from __future__ import annotations

import importlib.util
import sys

from chatterbox_opt.config.model_config import MULTILINGUAL_TEXT, ModelConfig
from chatterbox_opt.errors import InputError, first_line
from chatterbox_opt.utils.arguments import shown
from chatterbox_opt.utils.damage import DAMAGE_ERRORS

DEFAULT = "en"
AUTO = "auto"  # in place of a code: detected in the text
LANGUAGES = {  # upstream mtl_tts.py, SUPPORTED_LANGUAGES
    "ar": "Arabic", "da": "Danish", "de": "German", "el": "Greek", "en": "English",
    "es": "Spanish", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "ms": "Malay", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish",
    "sw": "Swahili", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip
# letters of scripts without blanks between words, for a regular expression: Thai, Lao, Burmese,
# Khmer, Chinese and Japanese
DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff\uff00-\uffef"
_EXTRA = 'pip install "chatterbox-opt[languages]"'
_FROM_SOURCE = "pip install git+https://github.com/Vuizur/add-stress-to-epub"
LIBRARIES = {  # language or AUTO -> package that is imported, and how it is installed
    AUTO: ("py3langid", _EXTRA),
    "he": ("dicta_onnx", _EXTRA),
    "ja": ("pykakasi", _EXTRA),
    "ru": ("russian_text_stresser", _FROM_SOURCE),
    "zh": ("spacy_pkuseg", _EXTRA),
}
# of those that download their data when they are first used: how it comes here without a network
_DATA = {
    "ru": "copy russian_dict.db of another machine into the library's directory",
    "zh": "copy the directory ~/.pkuseg (or PKUSEG_HOME) of another machine",
}
_WITH_ERRORS = (  # modules whose exceptions are no other's
    *("onnxruntime.capi.onnxruntime_pybind11_state", "sqlite3", "zlib", "_lzma"),
)
_SHOWN = 100  # characters of a library's own message


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


def languages_of(config: ModelConfig) -> tuple[str, ...]:
    """The codes that a model knows."""
    if config.languages:
        return config.languages
    return tuple(LANGUAGES) if config.text == MULTILINGUAL_TEXT else (DEFAULT,)


def chosen(language: str | None, config: ModelConfig) -> str | None:
    """The language that is meant: a multilingual model that has only one need not be told.

    Args:
        language: a code, ``AUTO`` or None.

    Returns:
        as ``language``; a code, where the model leaves no choice. None for an English model that
        is not told, whose tokens do not depend on it.
    """
    only, *others = languages_of(config)
    if others or language not in (None, AUTO):
        return language
    return only if language == AUTO or config.text == MULTILINGUAL_TEXT else None


def check_model(language: str | None, config: ModelConfig) -> None:
    """Check that a model can read the language, here.

    Raises:
        InputError: the model does not know it, or its library is not installed.
    """
    language = chosen(language, config)
    if language is None:
        return
    if language != AUTO and language not in (known := languages_of(config)):
        raise InputError(
            f"this model does not know the language {language} ({LANGUAGES[language]}), only "
            f"{', '.join(known)}: use --model multilingual"
        )
    if language in LIBRARIES and config.text == MULTILINGUAL_TEXT:
        check_library(language)


def remark(language: str | None, config: ModelConfig) -> str:
    """One line if a model that knows several languages is not told which, or ""."""
    if chosen(language, config) is not None or config.text != MULTILINGUAL_TEXT:
        return ""
    return "no language is given, so the model guesses it: pass --language de, or the text's own"


def check_library(language: str) -> None:
    """Raise InputError if the library of a language is not installed."""
    package, command = LIBRARIES[language]
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{_name(language)} needs the library {package}: {command}")


def _name(language: str) -> str:
    return LANGUAGES.get(language, f"the language {AUTO}")


def library_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise, broken or without their data."""
    modules = [sys.modules[name] for name in _WITH_ERRORS if name in sys.modules]
    values = [value for module in modules for value in vars(module).values()]
    own = [v for v in values if isinstance(v, type) and issubclass(v, Exception)]
    return (ImportError, OSError, *DAMAGE_ERRORS, *own)


def failure(language: str, error: Exception) -> InputError:
    """The error of a language whose library is here and does not work."""
    package, command = LIBRARIES[language]
    if isinstance(error, OSError) and language in _DATA:
        return InputError(
            f"{_name(language)} needs the data of the library {package}, which is not here and "
            f"cannot be downloaded ({type(error).__name__}): connect and run again, or "
            f"{_DATA[language]}"
        )
    if not isinstance(error, ImportError) and command == _EXTRA:
        command = f"pip install --force-reinstall --no-deps {package.replace('_', '-')}"
    reason = first_line(error)
    reason = reason if len(reason) <= _SHOWN else reason[: _SHOWN - 1] + "…"
    return InputError(
        f"the library {package}, which {_name(language)} needs, fails "
        f"({type(error).__name__}: {reason}): {command}"
    )
