"""The words of texts that are not English, as they are compared.

Responsible for what sounds the same but is written in several ways: numbers in digits and in
words, signs, case, marks that may be left out. Not responsible for English or for counting
(wer.py). Letters of scripts without blanks between words are words of their own.
"""

from __future__ import annotations

import re
import unicodedata

from chatterbox_opt.script.say_as import words_of
from chatterbox_opt.text.languages import DENSE

_LATIN = re.compile("[A-Za-z\u00aa\u00ba-\u024f\u1e00-\u1eff]")
# digits with marks between them, or with blanks between thousands
_NUMBER = re.compile(r"(?:(?<!\w)[-\u2212])?\d+(?:[.,'\u2019]\d+| \d{3}(?!\d))*")
_RUN = re.compile(r"\d{1,30}")  # what ``words_of`` reads
_CURRENCY_FIRST = re.compile(rf"([€$]) ?({_NUMBER.pattern})")
_NUMBERS_OF = {"zh": "ja"}  # num2words has no Chinese, whose signs for numbers are nearly the same
_TURKISH = {0x49: "ı", 0x130: "i"}  # I and İ
# Hebrew points, Arabic vowel signs and tatweel, stress marks, "ё": a text may have them, or not
_OPTIONAL = re.compile(
    "[\u0301\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0640\u064b-\u0652\u0670]"
)
_YO = ("ё", "е")
_SIGNS = (  # and how they are called in the languages of text/languages.py, in small letters
    ("euro", re.compile(
        r"€|\beuro(?:s|a|n|t|ja)?\b|\bевро\b|ευρώ|يورو|אירו|यूरो|ユーロ|유로|欧元|\bavro\b")),
    ("dollar", re.compile(
        r"\$|\bdoll[ae]r[ois]?\b|\bd[oó]l[aá]r\w*|\bdollaria?\b|\bдоллар\w*|δολάρι\w*|دولار\w*|"
        r"דולר\w*|डॉलर|ドル|달러|美元|\bdola\b")),
    ("percent", re.compile(
        r"%|\bpro[csz]ent\w*|\bpor ?ciento\b|\bp(?:er|or|our) ?cento?\b|"
        r"\bпроцент\w*|τοις εκατό|في المئة|بالمئة|אחוז\w*|प्रतिशत|パーセント|퍼센트|\byüzde\b|"
        r"\bperatus\b|\basilimia\b")),
)  # fmt: skip


def is_latin(text: str) -> bool:
    """Whether at most half of the letters are of other scripts than the Latin one."""
    letters = [c for c in text if c.isalpha()]
    return 2 * sum(_LATIN.match(c) is not None for c in letters) >= len(letters)


def words(text: str, language: str | None = None) -> list[str]:
    """Split into normalized words: small letters, no punctuation, numbers in words.

    Args:
        language: a code of text/languages.py; None: not known. Without it, and in languages that
            num2words does not know, numbers are as they were written.
    """
    text = _ascii_digits(unicodedata.normalize("NFKC", text))
    text = _CURRENCY_FIRST.sub(r"\2 \1", text)
    if language is not None:
        code = _NUMBERS_OF.get(language, language)
        text = _NUMBER.sub(lambda found: f" {_number(found[0], code)} ", text)
    if language == "tr":
        text = text.translate(_TURKISH)
    text = _OPTIONAL.sub("", unicodedata.normalize("NFKC", text.casefold())).replace(*_YO)
    for name, pattern in _SIGNS:
        text = pattern.sub(f" {name} ", text)
    text = "".join(map(_letter_or_space, text))
    text = re.sub(rf"(?=[{DENSE}])(?=\w)|(?<=[{DENSE}])(?=\w)", " ", text)
    return [word for word in text.split() if any(c.isalnum() for c in word)]


def _ascii_digits(text: str) -> str:
    return re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text)


def _number(number: str, language: str) -> str:
    """A number in words; what is none, such as "28.11.2026", run by run."""
    try:
        return words_of("cardinal", number, "", language)
    except ValueError:
        runs = _RUN.findall(number)
        return " ".join(words_of("cardinal", run, "", language) for run in runs)


def _letter_or_space(c: str) -> str:
    """A letter, digit or combining mark, "" for an invisible character, else a blank.

    Katakana become hiragana.
    """
    if "ァ" <= c <= "ヶ":
        return chr(ord(c) - 0x60)
    category = unicodedata.category(c)
    return c if category[0] in "LNM" else "" if category == "Cf" else " "
