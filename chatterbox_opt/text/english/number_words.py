"""Numbers and nouns in English words: "1,234.5" to "one thousand two hundred and thirty-four point
five".

Responsible for one number or noun. Not responsible for where they are in a text (normalizer.py,
quantities.py).
"""

from __future__ import annotations

import re

from num2words import num2words

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ANY_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
NUMBER = rf"((?<![\d.])(?<!\d,){ANY_NUMBER})"  # the whole of one
_LONGEST = 12, 36  # digits, without and with commas, beyond which a number is a code
_PLURALS = {
    "penny": "pence", "foot": "feet", "half": "halves",
    **{same: same for same in ("yen", "won", "baht", "dong", "naira", "lira")},
}  # fmt: skip


def table(pairs: str) -> dict[str, str]:
    """Parse "a:b c:d_e" to {"a": "b", "c": "d e"}."""
    return {k: v.replace("_", " ") for k, v in (p.rsplit(":", 1) for p in pairs.split())}


def any_of(words: dict[str, str]) -> str:
    """A group that matches one of the keys, the longest first."""
    return "(" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + ")"


def in_words(number: int | str, to: str = "cardinal") -> str:
    """A whole number in words, as a "cardinal", an "ordinal" or a "year"."""
    return str(num2words(int(number), to=to)).replace(",", "").replace("oh-", "oh ")


def digits(number: str) -> str:
    """Digits one by one: "007" is "zero zero seven"."""
    return " ".join(DIGITS[int(digit)] for digit in number)


def cardinal(number: str) -> str:
    """A number such as "1,234.5" in words; one like a code ("007") digit by digit."""
    whole, _, fraction = number.partition(".")
    longest = _LONGEST["," in whole]
    whole = whole.replace(",", "")
    code = len(whole) > longest or (len(whole) > 1 and whole[0] == "0")
    words = [digits(whole) if code else in_words(whole)] if whole else []
    return " ".join([*words, "point", digits(fraction)] if fraction else words)


def plural(noun: str) -> str:
    """Of a noun, or of the first one: "miles per hour"."""
    first, *rest = noun.split(" ")
    regular = first if first.endswith("hertz") else re.sub("y$", "ie", first) + "s"
    return " ".join([_PLURALS.get(first, regular), *rest])


def counted(number: str, noun: str) -> str:
    """A number and its noun: "one mile", "two miles"."""
    return f"{cardinal(number)} {noun if number == '1' else plural(noun)}"
