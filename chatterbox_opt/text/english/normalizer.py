"""English text normalization: "Dr. Lee paid $5" to "Doctor Lee paid five dollars".

Responsible for numbers, dates, times, money, units, signs, abbreviations and initialisms. Not
responsible for tokens, markup (markup.py) or other scripts (folding.py); no semantics: ambiguous
text gets its more frequent reading.

The built-in model was trained on words only, so its input must not contain digits or symbols.
"""

from __future__ import annotations

import re
from itertools import chain
from re import Match

from chatterbox_opt.errors import TextError
from chatterbox_opt.text.chunking import SCENE_BREAK, clean, has_speech, paragraphs
from chatterbox_opt.text.english.folding import fold
from chatterbox_opt.text.english.initialisms import SENTENCE, expand_initialisms
from chatterbox_opt.text.english.markup import read_markup
from chatterbox_opt.text.english.number_words import (
    ANY_NUMBER,
    any_of,
    cardinal,
    counted,
    digits,
    in_words,
    plural,
    table,
)
from chatterbox_opt.text.english.quantities import CURRENCIES, MONEY, QUANTITIES, Rule
from chatterbox_opt.text.english.reading import Reading

_SYMBOLS = table("&:and @:at %:percent +:plus =:equals °:degrees") | {
    sign: plural(coin.split(" ")[0]) for sign, coin in CURRENCIES.items()
}
_YEAR = "January February March April May June July August September October November December"
_MONTHS = _YEAR.split()
_MONTH = (  # "May." is the end of a sentence
    "(" + "|".join(rf"{m[:3]}(?:{m[3:]}|t?\b\.?)" if m[3:] else m for m in _MONTHS) + r")(?!\w)"
)
_DAY = r"(0?[1-9]|[12]\d|3[01])"
_MONTH_NUMBER = r"(0?[1-9]|1[0-2])"
_HALF = r"([AaPp])(?:[Mm]\b|\.[Mm]\b\.?)"
_FIRST = rf"(?<![\d:.,{MONEY}-])"  # before a time
_NTH = r"(?i:st|nd|rd|th)"
_TITLES = table(  # only before a capital
    "Mr:Mister Mrs:Missus Ms:Miz Dr:Doctor Prof:Professor St:Saint Mt:Mount Rev:Reverend "
    "Gen:General Col:Colonel Capt:Captain Sgt:Sergeant Lt:Lieutenant Gov:Governor Sen:Senator"
)
_SHORT = table(
    "etc:et_cetera vs:versus approx:approximately jr:junior sr:senior inc:incorporated ltd:limited "
    "corp:corporation co:company dept:department ave:avenue rd:road blvd:boulevard st:street "
    "dr:drive e.g:for_example i.e:that_is"
)
_BEFORE_DIGIT = table("no:number p:page pp:pages vol:volume fig:figure ch:chapter apt:apartment")
_WEEK = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_DATES = {d[:n]: d for d in f"{_YEAR} {_WEEK}".split() for n in (3, 4, 5) if len(d) > n}
del _DATES["Marc"]  # a name
_NUMBERED = "Episode|Season|Track|Lesson|Unit|Day|Week|Verse|Page|Figure|Table|Step|Exercise|Number"
_OPERAND = rf"[{MONEY}(]?-?(?:\.?\d|[A-Za-z](?!['\w]))"
_VARIABLE = r"((?:\d|(?<![A-Za-z'])[A-Za-z]|\)) ?)"
_RULERS = "Henry|Elizabeth|Charles|George|Edward|James|William|Richard|Mary|Louis|Philip|John|Paul"
_PARTS = "Chapter|Part|Act|Scene|Volume|Book|Section|Phase|Stage|Type|Class|Article|War|Level"
# after "U.S." or "5 p.m." only these words mark a new sentence: others may be names
_NEXT_SENTENCE = r"\W*$|\W+(?:Th\w+|An?|He|She|It|We|You|I|But|And|So|In|On|At|If|My|Her|Wh\w+)\b"


def read_english(text: str) -> Reading:
    """Read English ``text`` aloud, in words: only ASCII letters, single spaces and ``.,!?;:'"-()``.

    Initialisms become single letters ("B B C"), accents are removed. Paragraphs stay apart, with an
    empty line between them, also around a heading; ``---`` is a scene break (chunking.py). Other
    scripts, markup and the like are reported in ``dropped``.

    Raises:
        TextError: a NUL byte, not UTF-8, or no word is left; names what was dropped.
    """
    return with_words(reading_of(text))


def reading_of(text: str) -> Reading:
    """As ``read_english``, of a part of a text: no word may be left.

    Raises:
        TextError: a NUL byte, not UTF-8, or no letter or digit of any script.
    """
    lines = clean(text).replace("\u2029", "\n\n").splitlines()
    marked = read_markup(Reading("\n".join(lines)))
    readings = [_read_paragraph(paragraph) for paragraph in paragraphs(marked.text)]
    dropped = tuple(chain(marked.dropped, *(reading.dropped for reading in readings)))
    return Reading("\n\n".join(r.text for r in readings if r.text), dropped)


def with_words(reading: Reading) -> Reading:
    """The same.

    Raises:
        TextError: no word is left; names what was dropped.
    """
    if not has_speech(reading.text):
        what = f" ({reading.names})" if reading.dropped else ""
        raise TextError(f"the text has no word that this model can read{what}: give English text")
    return reading


def _read_paragraph(paragraph: str) -> Reading:
    if not has_speech(paragraph):
        return Reading(SCENE_BREAK)  # read as a pause
    reading = fold(Reading(paragraph))
    reading = Reading(_tidy(reading.text), reading.dropped)
    for pattern, words in _RULES:
        reading = reading.replace(pattern, words)
    text = re.sub(r"(?<!\.)\.(?=[,;:])", "", reading.text)  # of an abbreviation within a sentence
    return Reading(_tidy(text) if has_speech(text) else "", reading.dropped)


def _tidy(text: str) -> str:
    text = " ".join(re.sub(r"\([\s,;:.!?-]*\)|(?<!\S)\"[\s,;:.!?-]*\"(?!\w)", " ", text).split())
    text = re.sub(r"[.,;:!?](?: [.,;:!?](?![.\w]))+", _one_mark, text)  # around dropped words
    text = re.sub(r"^(?:[,;:!?]|\.(?![.\w])|- )[\s,;:!?]*", "", text)
    return re.sub(r" +(?=[,;:!?]|\.(?!\w))|(?<=\() +| +(?=\))", "", text)


def _one_mark(m: Match[str]) -> str:
    return next((mark for mark in m[0] if mark in ".!?"), m[0][0])


def _short(m: Match[str], table: dict[str, str]) -> str:
    words = table.get(m[1]) or table[m[1].lower()]
    return (words[0].upper() if m[1][0].isupper() else words[0]) + words[1:] + _stop(m)


def _stop(m: Match[str], capital: str = r"\W*$|\W+[A-Z]") -> str:
    """Return the full stop of an abbreviation if it also ends the sentence."""
    rest = m.string[m.end() : m.end() + 20]
    ends = m[0].endswith(".") and rest[:1] in ("", " ", '"', "'", ")") and re.match(capital, rest)
    return "." if ends else ""


def _title(m: Match[str]) -> str:
    before = m.string[max(0, m.start() - 30) : m.start()]  # "on Main St. Bob waited"
    after_name = re.search(rf"[a-z\d] [A-Z][a-z]+ $|\d{_NTH} $", before)
    road = {"St": "Street", "Dr": "Drive"}.get(m[1]) if after_name else None
    return road + _stop(m) if road else _TITLES[m[1]]


def _initials(m: Match[str]) -> str:
    return " ".join(re.sub("[^A-Za-z]", "", m[0]).upper()) + _stop(m, _NEXT_SENTENCE)


def _roman(numeral: str, to: str = "cardinal") -> str:
    v = [{"I": 1, "V": 5, "X": 10, "L": 50}[c] for c in numeral.upper()]
    value = sum(-a if a < b else a for a, b in zip(v, [*v[1:], 0], strict=True))
    return in_words(abs(value), to)


def _time(m: Match[str]) -> str:
    hour, minute, second, half = m.groups()
    return _clock(hour, minute, half) + _seconds(second) + (_half(m, minute, half) if half else "")


def _clock(hour: str, minute: str, half: str | None = None) -> str:
    if minute in ("", "00"):
        return in_words(hour) + ("" if half else " o'clock" if 0 < int(hour) < 13 else " hundred")
    # pico's "forty-five P M" is heard as 35 (docs/performance-log.md)
    minutes = in_words(minute).replace("-", " ")
    return f"{in_words(hour)} {'oh ' * (minute[0] == '0')}{minutes}"


def _half(m: Match[str], minute: str, half: str) -> str:
    stop = _stop(m, _NEXT_SENTENCE)
    ends = stop or re.match(r"[\"')]*(?:[.,;:!?]|$)", m.string[m.end() : m.end() + 20])
    # without a pause the A of "five A M" is not heard at the end (docs/performance-log.md)
    pause = "," * bool(ends and half in "Aa" and minute.strip("0"))
    return f"{pause} {half.upper()} M{stop}"


def _seconds(second: str | None) -> str:
    return f" and {counted(second.lstrip('0'), 'second')}" if second and second.strip("0.") else ""


def _timestamp(m: Match[str]) -> str:
    """Read "2026-11-28T14:05:00Z", ISO 8601."""
    year, month, day, hour, minute, second, zone = m.groups()
    offset = re.match(r"([+-])(\d\d):?(\d\d)", zone or "")
    name = " U T C" * bool(zone)
    if offset and int(offset[2] + offset[3]):
        name += f" {_SYMBOLS['+'] if offset[1] == '+' else 'minus'} {in_words(offset[2])}"
        name += f" {in_words(offset[3])}" * (offset[3] != "00")
    return f"{date_words(month, day, year)}, {_clock(hour, minute)}{_seconds(second)}{name}"


def date_words(month: str, day: str, year: str | None, *, day_first: bool = False) -> str:
    """A date: "November twenty-eighth, twenty twenty-six".

    Args:
        month: a number, or the beginning of its name.
        year: of four digits, or two, of which 50 is 1950; None: not known.
    """
    name = _MONTHS[int(month) - 1] if month.isdigit() else _DATES.get(month[:3], month)
    nth = in_words(day, "ordinal")
    year = year and in_words(("" if year[2:] else "20" if year < "50" else "19") + year, "year")
    return (f"{nth} of {name}" if day_first else f"{name} {nth}") + (f", {year}" if year else "")


# fmt: off
_ORDER: tuple[Rule, ...] = (
    (r"[=+#%&@*_~]{3,}|(?<!\S)-{2,}(?!\S)", " "),
    (rf"(?<=\.\.)(?=[\w{MONEY}])", " "),
    # signs between words, numbers and variables
    (r"<([A-Za-z][\w -]*)>", r" \1 "),
    (r"!=|=/=", " not equal to "),
    (r"<=", " less than or equal to "),
    (r"(?<!-)>=", " greater than or equal to "),
    (r"==|=(?!>)", " equals "),
    (r"&&", " and "),
    (rf"<(?= ?{_OPERAND})|{_VARIABLE}<(?= ?[\w(])", r"\1 less than "),
    (rf"(?<![-=])>(?= ?{_OPERAND})|{_VARIABLE}>(?= ?[\w(])", r"\1 greater than "),
    (r"\^([23])(?![\d.])", lambda m: " squared" if m[1] == "2" else " cubed"),
    (r"(?:\^|(?<=[\w)])\*\*(?=\w))(?:\((-?\w[^()]*)\)|(-?\w+))", r" to the power of \1\2"),
    (r"(?<=\d)\*(?=\d)|(?<=\d )\*(?= \d)", " times "),
    (rf"(?<![\w~])~ ?(?=[{MONEY}]?\d)", "about "),
    (r"\b([A-GJ-Z])#(?!\w)", r"\1 sharp"),
    (r"\.NET\b", " dot Net"),
    (r"(?<![A-Za-z\d.])\.(?=[A-Za-z])", "dot "),
    (r"(?<=[A-Z])\.(?=[A-Z]{2})", " dot "),
    (r"(?<=[A-Za-z]{2})(?<!\bPh)\.(?=[\dA-Z])", ". "),
    # abbreviations, numerals of kings and chapters, initials
    (rf"\b{any_of(_TITLES)}(?:\.|(?<=\bM[rst])|(?<=Mrs)|(?<=\bDr)|(?<=\bSt))(?= [A-Z])", _title),
    (rf"\b(?i:{any_of(_SHORT)})\.", lambda m: _short(m, _SHORT)),
    (rf"\b(?i:{any_of(_BEFORE_DIGIT)})\. ?(?=\d)", lambda m: _short(m, _BEFORE_DIGIT) + " "),
    (rf"\b{any_of(_DATES)}\.(?:(?<!Jan.|Mar.|Sat.|Sun.)|(?=,| [a-z\d])|(?<=[io]n ....))",
     lambda m: _short(m, _DATES)),
    (rf"\b((?:King|Queen|Pope|Emperor) [A-Z][a-z]+|{_RULERS}) (V|X|[IVX]{{2,}}|I(?=[,.;:!?)]|$| of|"
     r" was))\b", lambda m: f"{m[1]} the {_roman(m[2], 'ordinal')}"),
    (r"\b([IVX]{2,})(?= [Cc]entur)", lambda m: _roman(m[1], "ordinal")),
    (rf"\b(?:({_PARTS}|(?:{_PARTS.lower()})(?= \w\w)) ([IVXL]+|[ivx]+)|([A-Z][a-z]+) ([IVX]{{2,}}))"
     r"\b", lambda m: f"{m[1] or m[3]} {_roman(m[2] or m[4])}"),
    (r"(?<![\w.&'])(?!(?:IV|XX+)\b)(?=[IVX]{2})(X{0,3}(?:IX|IV|V?I{0,3}))(?![\w&']|\.\w)",
     lambda m: _roman(m[1])),
    (rf"(?i:\b({_PARTS}|{_NUMBERED}) 0+(?=[1-9]))", r"\1 "),
    (SENTENCE, expand_initialisms),
    (r"(?<![A-Za-z'.])(?<!\b[A-Z] )([A-HJ-Z])\.(?= [A-Z])", _initials),
    # dates and times, and what is no date: "7 1/2/10"
    (r"(?<![\d/:.,-])(\d+ [1-3]/[2-4])/(?=\d{1,3}(?![\d/]))", r"\1 out of "),
    (rf"(?<![\d-])(\d{{4}})-(0[1-9]|1[0-2])-{_DAY}[T ]([01]\d|2[0-4]):([0-5]\d)(?::([0-5]\d(?:\.\d"
     r"+)?))?(?: ?(Z|[+-]\d\d:?\d\d))?(?![\d:])", _timestamp),
    (rf"(?<![\d-])(\d{{4}})-(0[1-9]|1[0-2])-{_DAY}(?![\d-])",
     lambda m: date_words(m[2], m[3], m[1])),
    (rf"(?<![\d/.-])(?:{_MONTH_NUMBER}/{_DAY}/|{_DAY}([/.]){_MONTH_NUMBER}\4)(\d{{4}}|\d\d)"
     r"(?![\d/.-]*\d)", lambda m: date_words(m[1] or m[5], m[2] or m[3], m[6])),
    (rf"(?<![\d/.-])(?:{_MONTH_NUMBER}-{_DAY}|{_DAY}-{_MONTH_NUMBER})-(\d{{4}})(?![\d/.-]*\d)",
     lambda m: date_words(m[1] or m[4], m[2] or m[3], m[5])),
    (rf"\b([Tt]he )?(?<![\d.,:/-]){_DAY}{_NTH}?(?: of)? {_MONTH}(?:,? (\d{{4}})\b)?", lambda m:
     (m[1] or "the ") + date_words(m[3], m[2], m[4], day_first=True) + _stop(m)),
    (rf"\b({_MONTH} \d\d?) ?- ?{_DAY}\b", r"\1 to \3th"),
    (rf"\b{_MONTH} {_DAY}{_NTH}?(?![\d:%/]|[.,]\d)(?:,? (\d{{4}})\b)?",
     lambda m: date_words(m[1], m[2], m[3])),
    # ranges: one of the two times has minutes, or is before or after noon
    (rf"{_FIRST}(\d\d?(?::\d\d)?(?: ?{_HALF})?) ?- ?(?=\d\d?(?::\d\d| ?{_HALF})(?![\d-]))",
     r"\1 to "),
    (rf"{_FIRST}(\d\d?:\d\d|\d\d?(?::\d\d)? ?{_HALF}) ?- ?(?=\d\d?(?![\d-])|(?:noon|midnight)\b)",
     r"\1 to "),
    (rf"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:])(?: ?{_HALF})?", _time),
    (rf"{_FIRST}(1[0-2]|0?[1-9])()() ?{_HALF}", _time),
    (r"\bPh\.?D\b\.?|(?<![A-Za-z.])(?:[A-Za-z]\.){2,}(?![A-Za-z])", _initials),
    # telephones, amounts, plain numbers
    (r"(?<![\d-])(?:\+?\d{1,3}[ -])?(?:\(\d{2,4}\) ?|\d{3}[ -])?\d{3}-\d{4}(?![\d-])|\+\d[\d -]{6,}"
     r"\d|(?<!\d)0\d{2,4} \d{3,4} \d{3,4}(?!\d)|(?:(?<=[Cc]all )|(?<=[Dd]ial ))\d{3}(?! ?\d)",
     lambda m: "plus " * (m[0][0] == "+") + ", ".join(map(digits, re.findall(r"\d+", m[0])))),
    *QUANTITIES,
    (r"(?<!\w)'?(\d{0,3}[1-9]0|\d\d00)'?s\b", 
     lambda m: re.sub("y$", "ie", in_words(m[1], "year")) + "s"),
    (rf"(?<![\d,.])(\d{{1,3}}(?:,\d{{3}}){{1,3}}|\d{{1,12}}){_NTH}\b",
     lambda m: in_words(m[1].replace(",", ""), "ordinal")),
    (r"(?<=\d)\.(?=\d+\.\d)|(?<=\d\.\d)\.(?=\d)", " point "),
    (r"#(?=(\d)|[A-Za-z])", lambda m: "number " if m[1] else "hashtag "),
    (r"(?<![\d.,])(19\d\d|20\d\d|(?:(?<=[Ii]n )|(?<=ince )|(?<=from )|(?<=ntil )|(?<=year )|(?<="
     r"fter )|(?<=fore )|(?<=ween ))1[0-8]\d\d)(?![\w%]|[.,]\d)", lambda m: in_words(m[1], "year")),
    (rf"{ANY_NUMBER}(?=([A-Za-z])?)", lambda m: cardinal(m[0]) + " " * bool(m[1])),
    (r"(?<=[a-z]{2})\.(?=[a-z])", " dot "),
    (f"[{''.join(_SYMBOLS)}]", lambda m: f" {_SYMBOLS[m[0]]} "),
    (r"[^A-Za-z.,!?;:'\"()-]+", " "),
    (r"(?<=[A-Za-z])([,;:!?])(?=[A-Za-z])", r"\1 "),
)
_RULES = [(re.compile(pattern, re.ASCII), reading) for pattern, reading in _ORDER]
