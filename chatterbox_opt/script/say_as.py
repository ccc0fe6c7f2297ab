"""The words of SSML's ``say-as``: characters, numbers, dates, times and telephone numbers.

Responsible for words that any model can read, also one that is not to be trusted with digits. Not
responsible for what a number means in a running text (text/english/), whose words for
English these are. Other languages have the cardinals and ordinals of num2words.
"""

from __future__ import annotations

import re

from chatterbox_opt.text.languages import DEFAULT, LANGUAGES

KINDS = ("characters", "cardinal", "ordinal", "date", "time", "telephone")
_ALIASES = {"spell-out": "characters", "verbatim": "characters", "number": "cardinal"}
_FORMS = ("ymd", "dmy", "mdy", "ym", "my", "md", "dm", "y", "m", "d")  # of a date
_NUMBER = re.compile(r"([+\u2212-]?)(\d{1,30}(?:[.,'\u2019 \u00a0\u202f]\d{1,30})*)", re.ASCII)
# thousands, or lakhs and crores, with the same mark between all; then perhaps a fraction
_GROUPS = re.compile(r"([1-9]\d{0,2}([^\d])(?:\d{2,3}\2)*\d{3})(?:(?!\2)[.,](\d+))?", re.ASCII)
_ONE_MARK = re.compile(r"(\d+)([.,])(\d+)", re.ASCII)
_SIGNS = {  # the decimal mark of a language, how it is read, and minus; of what num2words knows
    "en": (".", "point", "minus"), "ar": (".", "فاصلة", "سالب"), "da": (",", "komma", "minus"),
    "de": (",", "Komma", "minus"), "es": (",", "coma", "menos"), "fi": (",", "pilkku", "miinus"),
    "fr": (",", "virgule", "moins"), "he": (".", "נקודה", "מינוס"), "it": (",", "virgola", "meno"),
    "ja": (".", "点", "マイナス"), "ko": (".", "점", "마이너스"), "nl": (",", "komma", "min"),
    "no": (",", "komma", "minus"), "pl": (",", "przecinek", "minus"),
    "pt": (",", "vírgula", "menos"), "ru": (",", "запятая", "минус"), "sv": (",", "komma", "minus"),
    "tr": (",", "virgül", "eksi"),
}  # fmt: skip
_ORDINAL = re.compile(r"(\d{1,12})(?:st|nd|rd|th|\.|º|ª|er|e)?", re.ASCII | re.IGNORECASE)
_TIME = re.compile(
    r"([01]?\d|2[0-4])(?:[:.hH]([0-5]\d)(?:[:.]([0-5]\d))?)? ?([AaPp])?(?(4)\.?[Mm]\.?)", re.ASCII
)
_SHOWN = 30  # characters of a content in a message


def words_of(kind: str, content: str, form: str, language: str) -> str:
    """What is read for a content.

    Args:
        kind: of ``KINDS``.
        form: of a date, such as "dmy"; "" elsewhere, or to go by the content.
        language: a code of text/languages.py.

    Raises:
        ValueError: an unknown kind, or content that is none of it, with the remedy.
    """
    kind, content = _ALIASES.get(kind, kind), content.strip()
    if kind not in KINDS:
        raise ValueError(f"interpret-as is '{kind[:_SHOWN]}'; known: {', '.join(KINDS)}")
    if not any(c.isalnum() for c in content):
        return content
    if kind in ("date", "time"):
        if language != DEFAULT:
            name = LANGUAGES.get(language, language)
            raise ValueError(f"a {kind} of <say-as> is English; in {name} write it in words")
        return _date(content, form.lower()) if kind == "date" else _time(content)
    say = {
        "characters": _characters,
        "cardinal": _cardinal,
        "ordinal": _ordinal,
        "telephone": _telephone,
    }
    return say[kind](content, language)


def _characters(content: str, language: str) -> str:
    """Letter by letter: "A1-b" is "A one dash B"."""
    from chatterbox_opt.text.english.markup import ADDRESS_SIGNS

    signs = ADDRESS_SIGNS if language == DEFAULT else {}
    return " ".join(filter(None, (signs.get(c) or _character(c, language) for c in content)))


def _cardinal(content: str, language: str) -> str:
    number = _NUMBER.fullmatch(content)
    if number is None:
        raise _none_of("number", content, "1234")
    if language not in _SIGNS:  # a model for several languages reads it by itself
        return content
    mark, point, minus = _SIGNS[language]
    whole, fraction = _whole_and_fraction(number[2], mark)
    read = [minus] if number[1] in ("-", "\u2212") else []
    read.append(_whole(whole, language))
    if fraction:
        read += [point, *(_whole(digit, language) for digit in fraction)]
    return " ".join(read)


def _whole_and_fraction(body: str, decimal_mark: str) -> tuple[str, str]:
    """The digits before and behind a number's decimal mark.

    One mark before three digits is between thousands, unless it is the language's decimal mark.
    """
    if body.isdigit():
        return body, ""
    groups = _GROUPS.fullmatch(body)
    if groups and not (body.count(groups[2]) == 1 and groups[2] == decimal_mark):
        return re.sub(r"\D", "", groups[1]), groups[3] or ""
    if one := _ONE_MARK.fullmatch(body):
        return one[1], one[3]
    raise _none_of("number", body, "1234 or 1,234.5")


def _whole(number: str, language: str) -> str:
    """A whole number in words."""
    if language != DEFAULT:
        return _num2words(number, language, "cardinal")
    from chatterbox_opt.text.english.number_words import cardinal

    return cardinal(number)


def _ordinal(content: str, language: str) -> str:
    found = _ORDINAL.fullmatch(content)
    if found is None:
        raise _none_of("ordinal", content, "3 or 3rd")
    if language != DEFAULT:
        return _num2words(found[1], language, "ordinal")
    from chatterbox_opt.text.english.number_words import in_words

    return in_words(found[1], "ordinal")


def _telephone(content: str, language: str) -> str:
    """Digit by digit, with a comma between groups."""
    groups = re.findall(r"[^\W_]+", content)
    read = (" ".join(_character(c, language) for c in group) for group in groups)
    plus = "plus " if content.startswith("+") and language == DEFAULT else ""
    return plus + ", ".join(read)


def _date(content: str, form: str) -> str:
    """A date in words. Without a form 2026-11-28 and 28.11.2026 are what they look like, and
    11/28/2026 has the month first, unless that is impossible."""
    from chatterbox_opt.text.english.normalizer import date_words

    numbers = re.findall(r"[0-9]+", content)
    if not numbers or any(c.isalpha() for c in content):
        return _read(content)
    form = form or _likely_form(content, numbers)
    known = form in _FORMS and len(numbers) == len(form)
    value = dict(zip(form, numbers, strict=True)) if known else {}
    year, month, day = (value.get(key, default) for key, default in zip("ymd", "011", strict=True))
    exists = 1 <= int(month) <= 12 and 1 <= int(day) <= 31
    if not (known and exists and (len(year) in (2, 4) or "y" not in form)):
        raise _none_of("date", content, f"2026-11-28, or a format of {', '.join(_FORMS)}")
    whole = date_words(month, day, year if "y" in form else None)
    name, _, rest = whole.partition(" ")  # "November twenty-eighth, twenty twenty-six"
    nth, _, years = rest.partition(", ")
    front = " ".join(word for key, word in (("m", name), ("d", nth)) if key in form)
    return ", ".join(filter(None, (front, years)))


def _likely_form(content: str, numbers: list[str]) -> str:
    first, count = len(numbers[0]), len(numbers)
    if count >= 3:
        day_first = "." in content or int(numbers[0]) > 12
        return "ymd" if first == 4 else "dmy" if day_first else "mdy"
    if count == 2:
        return "ym" if first == 4 else "my" if len(numbers[1]) == 4 else "md"
    return "y"


def _time(content: str) -> str:
    clock = _TIME.fullmatch(content)
    if clock is None or not (clock[2] or clock[4]):
        raise _none_of("time", content, "14:05 or 2:05 pm")
    hour, minute, second, half = clock.groups()
    rest = (f":{second}" if second else "") + (f" {half}m" if half else "")
    return _read(f"{hour}:{minute or '00'}{rest}")


def _read(content: str) -> str:
    """What text/english/normalizer.py makes of a content by itself."""
    from chatterbox_opt.text.english.normalizer import read_english

    return read_english(content).text


def _character(c: str, language: str) -> str:
    """A letter in capitals, a digit as a word, "" for anything else."""
    if not "0" <= c <= "9":
        return c.upper() if c.isalnum() else ""
    if language != DEFAULT:
        return _num2words(c, language, "cardinal")
    from chatterbox_opt.text.english.number_words import digits

    return digits(c)


def _num2words(number: str, language: str, to: str) -> str:
    """Words in a language that num2words knows; elsewhere the number as it is, which a model for
    several languages reads by itself."""
    from num2words import num2words

    try:
        return str(num2words(number, lang=language, to=to)).replace(",", "")
    except (NotImplementedError, ArithmeticError, LookupError, TypeError, ValueError):
        return number


def _none_of(kind: str, content: str, example: str) -> ValueError:
    return ValueError(f"'{content[:_SHOWN]}' is no {kind} of <say-as>: give {example}")
