"""Unicode to the characters that English rules know: ASCII and a few signs.

Responsible for accents, letters of the Latin script, digits of every script, superscripts, single
Greek letters, typographic marks and signs; reports the words of other scripts, which it drops. Not
responsible for the reading of ASCII numbers and signs (normalizer.py).
"""

from __future__ import annotations

import re
import unicodedata
from re import Match

from chatterbox_opt.text.english.quantities import MONEY
from chatterbox_opt.text.english.reading import Reading

SIGNS = f"{MONEY}°¢"  # kept: normalizer.py reads them
_MARKS = {  # where Unicode's decomposition has nothing, or the wrong character
    **dict.fromkeys("‘’‚‛′ʼʻ`´‹›", "'"),
    **dict.fromkeys("“”„‟″«»", '"'),
    **dict.fromkeys("‐‑–−", "-"),
    **dict.fromkeys("—―", " - "),
    **dict.fromkeys("[{", "("),
    **dict.fromkeys("]}", ")"),
    **dict.fromkeys("™®©", " "),
    "×": " times ",
    "÷": " divided by ",
    "±": " plus or minus ",
    "≠": " != ",
    "≤": " <= ",
    "≥": " >= ",
    "≈": " approximately ",
    "∞": " infinity ",
    "√": " square root of ",
    "№": "No.",
    "§": " section ",
    "♯": "#",
    "\u200b": " ",  # zero-width space
    "\u2044": "/",
}
_LATIN = {  # letters whose Unicode name does not say the base letter
    "ß": "ss", "ẞ": "SS", "œ": "oe", "Œ": "Oe", "Æ": "Ae", "ı": "i", "ȷ": "j", "ð": "d", "Ð": "D",
    "þ": "th", "Þ": "Th", "ŋ": "ng", "Ŋ": "Ng", "ə": "e", "Ə": "E", "ĸ": "k", "ɛ": "e", "Ɛ": "E",
    "ɔ": "o", "Ɔ": "O", "ƿ": "w", "ȝ": "g",
}  # fmt: skip
_BASE_LETTER = re.compile(r"LATIN (SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .+)?")
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉"  # "H₂O" is read as "H2O"
_RAISED_NUMBER = re.compile(f"[⁺⁻]?[{_RAISED}]+")
_RAISED_BASE = re.compile(r"(?:[\d)]|(?<![^\W\d_])(?:[A-Za-z]|[kcm]m|ft|in|yd|mi))$")
_DASH_OF_A_SENTENCE = re.compile(r"(?<=\d)\s+[—―]\s+(?=\d)")  # not a range
_YEAR = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d$")
_MICRO = re.compile(r"(?<=\d) ?[µμ]([mgslL])(?!\w)")
_MICRO_UNITS = {"m": "meters", "g": "grams", "s": "seconds", "l": "liters", "L": "liters"}
_GREEK_LETTER = re.compile(  # alone: before no letter and no combining mark
    r"(?<![^\W\d_])[Α-ΡΣ-Ωα-ωµΩϕϑϵ](?=[\x00-@\[-`{-~°±·×¹²³\u2010-\u2027\u2030-\u209c\u2190-\u22ff]|$)"
)


def fold(reading: Reading) -> Reading:
    """Map every character to ASCII or to one of ``SIGNS``; drop and report the other letters.

    Runs of letters and digits that have no reading become a blank each.
    """
    reading = _without_marks(reading)
    reading = reading.replace(_RAISED_NUMBER, _exponent)
    reading = reading.drop(_RAISED_NUMBER, "footnote mark")
    reading = reading.replace(_MICRO, lambda m: f" micro{_MICRO_UNITS[m[1]]}")
    reading = reading.replace(_GREEK_LETTER, _letter_name)
    reading = reading.replace(_DASH_OF_A_SENTENCE, ", ")
    characters = {c: _mapped(c) for c in set(reading.text) if not c.isascii() or c in _MARKS}
    reading = _without_other_scripts(reading, characters)
    reading = _separate_numerals(reading, characters)
    codes = {ord(c): new for c, new in characters.items()}
    return Reading(reading.text.translate(codes), reading.dropped)


def _without_marks(reading: Reading) -> Reading:
    """Remove combining marks and invisible characters from Latin letters; others keep theirs."""
    marks = "".join(filter(_is_mark, set(reading.text) - {"\u200b"}))
    if not marks:
        return reading
    after_latin = re.compile(rf"(?<=[\x00-\u024f\u1e00-\u1eff])[{marks}]+")
    return Reading(after_latin.sub("", reading.text), reading.dropped)


def _is_mark(c: str) -> bool:
    return unicodedata.category(c) in ("Mn", "Mc", "Me", "Cf")


def _exponent(m: Match[str]) -> str:
    """Read "10⁻³" and "x²"; leave other raised numbers, which are marks of footnotes."""
    before = m.string[max(0, m.start() - 5) : m.start()]
    if m[0] == "¹" or not _RAISED_BASE.search(before) or _YEAR.search(before):
        return m[0]
    if m[0] in "²³":
        return " squared" if m[0] == "²" else " cubed"
    return f" to the power of {unicodedata.normalize('NFKD', m[0]).replace('−', '-')}"


def _letter_name(m: Match[str]) -> str:
    name = unicodedata.name(unicodedata.normalize("NFKD", m[0]))
    return name.split()[-1].lower().replace("lamda", "lambda")


def _mapped(c: str) -> str:
    """ASCII or signs for one character; without a letter or digit if there is no reading."""
    if c in SIGNS:
        return c
    return _MARKS.get(c) or "".join(map(_ascii, unicodedata.normalize("NFKD", c)))


def _ascii(c: str) -> str:
    if c.isascii() or c in SIGNS:
        return c
    if known := _LATIN.get(c) or _MARKS.get(c):
        return known
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    if unicodedata.category(c) == "No" and unicodedata.numeric(c, 0.5).is_integer():
        return str(int(unicodedata.numeric(c)))
    if latin := _BASE_LETTER.fullmatch(unicodedata.name(c, "")):
        return latin[2].lower() if latin[1] == "SMALL" else latin[2]
    return "" if _is_mark(c) else " "


def _without_other_scripts(reading: Reading, characters: dict[str, str]) -> Reading:
    letters = [
        c for c, new in characters.items() if c.isalnum() and c not in _MARKS and not _readable(new)
    ]
    if not letters:
        return reading
    marks = filter(_is_mark, characters)
    word = f"[{''.join(letters)}](?:['’-]?[{''.join([*letters, *marks])}])*"
    return reading.drop(re.compile(word), "another script")


def _separate_numerals(reading: Reading, characters: dict[str, str]) -> Reading:
    """Put blanks around numerals that are one character: "1½" is not eleven halves."""
    numerals = "".join(
        c for c in characters if unicodedata.category(c) in ("No", "Nl") and c not in _LOWERED
    )
    if not numerals:
        return reading
    edge = re.compile(rf"(?<=\w)(?=[{numerals}])|(?<=[{numerals}])(?=\w)")
    return Reading(edge.sub(" ", reading.text), reading.dropped)


def _readable(text: str) -> bool:
    return any(c.isalnum() for c in text)
