"""What a language's text becomes before its tokens: one function from str to str for each.

Responsible for upstream's text (tokenizer.py, 0.1.7) from the same libraries, and for an error
where upstream warns and goes on with other sounds. Not responsible for Chinese (cangjie.py) or for
which library is missing (languages.py).
"""

from __future__ import annotations

import contextlib
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from chatterbox_opt.errors import InputError
from chatterbox_opt.text.languages import LIBRARIES, check_library, failure, library_errors
from chatterbox_opt.text.tokenizers import cangjie
from chatterbox_opt.text.tokenizers.files import HEBREW

Step: TypeAlias = Callable[[str], str]
_HANGUL, _LAST_HANGUL = 0xAC00, 0xD7AF
_INITIAL, _VOWEL, _FINAL = 0x1100, 0x1161, 0x11A7  # the first jamo of each kind
_VOWELS, _FINALS = 21, 28


def make_step(language: str, directory: Path) -> Step:
    """The function of a language; that of most leaves the text as it is.

    Args:
        language: a code of languages.py.
        directory: of the model.

    Raises:
        InputError: its library is not installed, or cannot be started.
        WeightsError: a file in ``directory`` is missing or damaged.
    """
    factory = _FACTORIES.get(language)
    if factory is None:
        return _unchanged
    if language not in LIBRARIES:
        return factory(directory)
    check_library(language)
    try:
        step = factory(directory)
    except library_errors() as error:
        raise failure(language, error) from error

    def checked(text: str) -> str:
        try:
            return step(text)
        except library_errors() as error:
            raise failure(language, error) from error

    return checked


def _unchanged(text: str) -> str:
    return text


def _japanese(directory: Path) -> Step:
    import pykakasi

    return _KanaReader(pykakasi.kakasi().convert)


class _KanaReader:
    """Kanji to hiragana, with a blank before a word that begins with a particle's kana."""

    def __init__(self, convert: Callable[[str], list[dict[str, str]]]) -> None:
        self._convert = convert

    def __call__(self, text: str) -> str:
        read = "".join(self._read(word["orig"], word["hira"]) for word in self._convert(text))
        return unicodedata.normalize("NFKD", read)

    def _read(self, written: str, hiragana: str) -> str:
        if not any("\u4e00" <= c <= "\u9fff" for c in written):
            return written
        return f" {hiragana}" if hiragana.startswith(("は", "へ")) else hiragana


def _korean(directory: Path) -> Step:
    return _to_jamo


def _to_jamo(text: str) -> str:
    """Split syllables into jamo; NFKD has split most of them before."""
    return "".join(map(_jamo, text)).strip()


def _jamo(c: str) -> str:
    index = ord(c) - _HANGUL
    if not 0 <= index <= _LAST_HANGUL - _HANGUL:
        return c
    initial = chr(_INITIAL + index // (_VOWELS * _FINALS))
    vowel = chr(_VOWEL + index % (_VOWELS * _FINALS) // _FINALS)
    final = index % _FINALS
    return initial + vowel + (chr(_FINAL + final) if final else "")


def _hebrew(directory: Path) -> Step:
    from dicta_onnx import Dicta

    # some releases of the library find their network themselves, others must be given its path
    paths = [path for name in HEBREW if (path := directory / name).is_file()]
    try:
        points = Dicta(str(paths[0])) if paths else Dicta()
    except library_errors() as error:
        if isinstance(error, ImportError):
            raise
        what = f"'{paths[0]}' is not one, or damaged" if paths else "it is not here"
        raise InputError(
            f"Hebrew needs the network of dicta_onnx, and {what}: put {HEBREW[0]} into "
            f"'{directory}' (its releases are at github.com/thewh1teagle/dicta-onnx)"
        ) from error
    add: Step = points.add_diacritics
    return add


def _russian(directory: Path) -> Step:
    from concurrent.futures import ThreadPoolExecutor

    # its database answers only the thread that opened it, and texts come from several
    thread = ThreadPoolExecutor(1, "russian stress")

    def make() -> Step:
        from russian_text_stresser.text_stresser import RussianTextStresser

        stress: Step = RussianTextStresser().stress_text
        return stress

    def quietly(work: Callable[[], Any]) -> Any:
        # it prints, and standard output may be audio
        with contextlib.redirect_stdout(sys.stderr):
            return thread.submit(work).result()

    stress: Step = quietly(make)
    return lambda text: str(quietly(lambda: stress(text)))


def _chinese(directory: Path) -> Step:
    from spacy_pkuseg import pkuseg

    codes = cangjie.read_codes(directory)
    cut = pkuseg().cut
    return lambda text: cangjie.encode(" ".join(cut(text)), codes)


_FACTORIES: dict[str, Callable[[Path], Step]] = {
    "he": _hebrew,
    "ja": _japanese,
    "ko": _korean,
    "ru": _russian,
    "zh": _chinese,
}
