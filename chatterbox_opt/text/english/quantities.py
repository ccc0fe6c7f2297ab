"""English rules for amounts: money, units, fractions, ranges and groups of numbers.

Responsible for patterns and words of what is counted or measured. Not responsible for dates, times
and plain numbers (normalizer.py) or for a number's words (number_words.py).

    $5-10m          five to ten million dollars: sign and scale hold for both
    5km-10km        five kilometers to ten kilometers
    10 m/s, $20/hr  ten meters per second, twenty dollars per hour
    123-45-6789     three groups are a code, not a range
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import Match

from chatterbox_opt.text.english.number_words import (
    NUMBER,
    any_of,
    cardinal,
    counted,
    digits,
    in_words,
    plural,
    table,
)

Rule = tuple[str, str | Callable[[Match[str]], str]]

CURRENCIES = table(  # coin, and the hundredth of it where people say it
    "$:dollar_cent £:pound_penny €:euro_cent ¥:yen_ ₹:rupee_ ₩:won_ ₽:ruble_ ₿:bitcoin_ ₪:shekel_ "
    "฿:baht_ ₺:lira_ ₫:dong_ ₦:naira_ ₱:peso_ ₴:hryvnia_"
)
MONEY = "".join(CURRENCIES)  # in a class of characters
_SIGN = f"[{MONEY}]"
UNITS = table(
    "km:kilometer m:meter cm:centimeter mm:millimeter mi:mile ft:foot yd:yard yds:yard kg:kilogram "
    "g:gram mg:milligram lb:pound lbs:pound oz:ounce l:liter L:liter ml:milliliter mL:milliliter "
    "gal:gallon mph:mile_per_hour rpm:revolution_per_minute °C:degree_Celsius °F:degree_Fahrenheit "
    "°:degree KB:kilobyte kB:kilobyte MB:megabyte GB:gigabyte TB:terabyte kbps:kilobit_per_second "
    "Mbps:megabit_per_second Gbps:gigabit_per_second Hz:hertz kHz:kilohertz MHz:megahertz "
    "GHz:gigahertz kW:kilowatt MW:megawatt kWh:kilowatt-hour MWh:megawatt-hour dB:decibel "
    "hr:hour hrs:hour min:minute mins:minute sec:second secs:second ms:millisecond ¢:cent"
)
# behind a slash, where a letter can only be a unit
_PER = table("s:second h:hour d:day wk:week mo:month yr:year") | UNITS
_SCALES = table(
    "k:thousand m:million mn:million b:billion bn:billion t:trillion tn:trillion trn:trillion"
)
_SCALE = (
    r"(?:(?: ?|(-))"
    r"((?i:hundred|thousand|million|billion|trillion|[mb]n|tr?n)|[kKmMBT](?! [A-Z]\b))"
    r"(?![A-Za-z]))?"
)
_SLASH = rf"(?: ?/ ?{any_of(_PER)}(?![A-Za-z]))?"
_FRACTIONS = {"2": "half", "4": "quarter"}
_PARTS = {*map(str, range(2, 11)), "12", "16", "32", "64", "100", "1000"}
_OUT_OF = 20  # numerators of fractions that are no part "of" something are below
_FRACTION = r"(?<![\d/.])(\d{1,3})/(\d{1,4})(?!/?\d|\.\d)"
_MIXED = rf"(?:(?<![\d/.,])(\d+) )?{_FRACTION}"


def _range(m: Match[str]) -> str:
    """Of money: sign, number, hyphen, scale; sign or none, number, hyphen, scale; per."""
    sign, first, _, scale, second_sign, second, hyphen, second_scale, per = m.groups()
    is_shared = not scale and second_scale and float(_plain(first)) < float(_plain(second))
    if second_sign or any(_has_cents(number) for number in (first, second)):
        start = _amount(sign, first, second_scale if is_shared else scale)
        end = _amount(second_sign or sign, second, second_scale, one=bool(hyphen))
        return f"{start} to {end}{_per(per)}"
    start = cardinal(first) + (f" {_scale(scale)}" if scale else "")
    return f"{start} to {_amount(sign, second, second_scale, one=bool(hyphen))}{_per(per)}"


def _money(m: Match[str]) -> str:
    """Sign, number, hyphen, scale; or number, hyphen, scale, sign; then per."""
    sign, number, hyphen, scale, *behind, per = m.groups()
    if sign is None:
        number, hyphen, scale, sign = behind
    return _amount(sign, number, scale, one=bool(hyphen)) + _per(per)


def _amount(sign: str, number: str, scale: str | None, *, one: bool = False) -> str:
    """An amount of money; ``one`` is a "three million dollar" one."""
    coin, small = CURRENCIES[sign].split(" ")
    if scale:
        return f"{cardinal(number)} {_scale(scale)} {coin if one else plural(coin)}"
    whole, _, part = number.partition(".")
    if not small or len(part) not in (1, 2):
        return counted(number, coin)
    cents = str(int(part.ljust(2, "0")))
    parts = [counted(whole, coin)] if whole.strip("0") or cents == "0" else []
    return " and ".join(parts if cents == "0" else [*parts, counted(cents, small)])


def _scale(written: str) -> str:
    return _SCALES.get(written.lower(), written.lower())


def _plain(number: str) -> str:
    return number.replace(",", "")


def _has_cents(number: str) -> bool:
    return len(number.partition(".")[2]) == 2


def _per(unit: str | None) -> str:
    return f" per {_PER[unit]}" if unit else ""


def _fraction(m: Match[str]) -> str:
    """A number before it, or none; numerator and denominator; " of", or nothing."""
    *number, of = m.groups()
    return _mixed(*number, of=bool(of)) or m[0]


def _fraction_of_money(m: Match[str]) -> str:
    """Sign, mixed number, hyphen, scale, per."""
    sign, *number, hyphen, scale, per = m.groups()
    coin = CURRENCIES[sign].split(" ")[0]
    if not scale:
        return _part_of(number, coin, per) or m[0]
    words = _mixed(*number)
    return f"{words} {_scale(scale)} {coin if hyphen else plural(coin)}" if words else m[0]


def _fraction_of_unit(m: Match[str]) -> str:
    """Mixed number, unit, per."""
    *number, unit, per = m.groups()
    return _part_of(number, UNITS[unit], per) or m[0]


def _part_of(number: list[str | None], noun: str, per: str | None) -> str:
    """As in "three and one half miles", "three quarters of a mile"; "" of no fraction."""
    words, one = _mixed(*number), "an" if noun in ("hour", "ounce") else "a"
    what = plural(noun) if number[0] else f"of {one} {noun}"
    return f"{words} {what}{_per(per)}" if words else ""


def _mixed(
    whole: str | None, numerator: str | None, denominator: str | None, *, of: bool = False
) -> str:
    """A mixed number, or a fraction; "" if it looks like none. ``of``: the word is behind it."""
    assert numerator and denominator
    is_part = of and int(numerator) < int(denominator)
    if not is_part and (int(numerator) >= _OUT_OF or denominator not in _PARTS):
        return ""
    part = _FRACTIONS.get(denominator) or in_words(denominator, "ordinal")
    return (f"{cardinal(whole)} and " if whole else "") + counted(numerator, part)


def _groups(m: Match[str]) -> str:
    """Numbers with hyphens between them."""
    groups = re.findall(r"\d+", m[0])
    is_code = any(len(group) > 2 or group[0] == "0" for group in groups)
    return ", ".join(map(digits if is_code else cardinal, groups))


# fmt: off
QUANTITIES: tuple[Rule, ...] = (
    (r"(?<![\w.,/-])\d+(?: ?- ?\d+){2,}(?![\w-]|[.,]\d)", _groups),
    (r"(?<![\d/-])(\d+)-(?=\d{1,2}/\d{1,2}(?![\d/]))", r"\1 "),  # "3-1/2" is a mixed number
    (rf"({_SIGN}) ?{NUMBER}{_SCALE} ?- ?({_SIGN})? ?{NUMBER}{_SCALE}{_SLASH}", _range),
    (r"(?<=\d) ?- ?(?=[\d.,]+ +equals\b)", " minus "),
    (rf"(?:(?<=[\d%]|{_SIGN})|(?<=\ds)) ?- ?(?={_SIGN}?\d)|(?<=\d):(?=\d)", " to "),
    (rf"((?<=\d)|(?<=\d ))({any_of(UNITS)}|[kKM]) ?- ?(?=\d)", r"\2 to "),
    (rf"(?<![\w)])-(?={_SIGN}?[\d.])", "minus "),
    (rf"(?<=[A-Za-z])'?(?=\d|{_SIGN})", " "),
    (rf"({_SIGN}) ?(?:(\d+) )?{_FRACTION}{_SCALE}{_SLASH}", _fraction_of_money),
    (rf"{_MIXED} ?{any_of(UNITS)}(?![A-Za-z]){_SLASH}", _fraction_of_unit),
    (rf"(?:({_SIGN}) ?{NUMBER}{_SCALE}|{NUMBER}{_SCALE} ?({_SIGN})(?!\d)){_SLASH}", _money),
    (rf"{NUMBER} ?{any_of(UNITS)}(?![A-Za-z]){_SLASH}(?:\.(?= [a-z]))?",
     lambda m: counted(m[1], UNITS[m[2]]) + _per(m[3])),
    (rf"(?<=\d)-{any_of(UNITS)}\b", lambda m: f"-{UNITS[m[1]]}"),
    (r"(\d)' ?(\d\d?(?: \d/\d)?)\"", r"\1 foot \2"),
    (r"(?<![\d/.,])(\d+\.\d+)/(\d+)(?![\d/]|\.\d)", r"\1 out of \2"),
    (rf"{_MIXED}(?=( of\b)?)", _fraction),
    (r"(?<=\w)/(?=(?:second|minute|hour|day|night|week|month|year|person)\b)", " per "),
)
