"""Words in capitals: "the BBC" to "the B B C", but "NASA" and "STOP" stay words.

Responsible for telling initialisms from words and from emphasis, by syllables and exceptions. Not
responsible for initials with full stops, units or numerals (normalizer.py).
"""

from __future__ import annotations

import re
from re import Match

from chatterbox_opt.text.english.quantities import UNITS

SENTENCE = r"(?:[^.!?]|[.!?](?! ))+"  # what ``expand_initialisms`` takes
# A word in capitals is an initialism if it has no vowel, is not made of English syllables, or has
# two or three letters. Exceptions: _WORDS are words, _INITIALS are initialisms.
_WORDS = (
    " AM AN AS AT BE BY DO GO HE IF IN IS ME MY NO OF OH ON OR SO TO UP WE AH HA HEY HI ALL AND "
    "ANY ARE ASK BUT BUY CAN DAD DAY DID END FOR FUN GET GOD GOT HAD HAS HER HIM HIS HOT HOW ITS "
    "LET MAN MAY MOM MUM NEW NOR NOT NOW OFF OLD ONE OUR OUT OWN PAY PUT RED RUN SAD SAW SAY SEE "
    "SHE THE TOO TOP TRY TWO USE WAS WAY WHO WHY WIN WOW YES YET YOU RAM PIN SIM HMM SHH "
)
_INITIALS = (
    " OK USA UK EU UN UAE UFO AI API CEO CFO CIA IBM AKA DIY EPA IRS IPO IQ ID IP IOU USB URL UCLA "
    "ACLU ASAP USDA IEEE YMCA ETA LED LCD ADHD "
)
_AFTER_DIGIT = {"AM", "PM", "ST", "ND", "RD", "TH", *filter(str.isupper, UNITS)}
_C = "[BCDFGHJKLMNPQRSTVWXYZ]"
_SYLLABLES = re.compile(
    rf"(?:{_C}|[CSTPWGR]H|[KG]N|WR|QU|S?[CKPT]R|[BDFG]R|S?[CPK]L|[BFGS]L|S[CKMNPTW]|[TD]W|THR|SHR)?"
    rf"[AEIOUY]+(?:{_C}{{1,4}}[AEIOUY]+)*(?:{_C}?|[LNRT]?[CST]H|[PG]H|CK|GHT|[LNRPCFSX]T|[LNR]D|"
    rf"[LRS][KMP]|RN|M[BP]|N[CGK]|R[BCFGLV]|L[BFV]|W[DKLN]|SS|LL|FF|ZZ|DD)S?"
)
_CAPITALS = re.compile(
    r"(\d ?)?(?<![A-Za-z])(?<![A-Za-z]')([A-Z]{2,})('?s|(?=&))?(?![A-Za-z]|'[A-Z])"
)


def _is_word(word: str, *, shouted: bool) -> bool:
    known = f" {word} " in _WORDS or (len(word) > 5 and re.search("[AEIOUY]", word))
    known = known or (_SYLLABLES.fullmatch(word) and (shouted or len(word) > 3))
    return bool(known) and f" {word} " not in _INITIALS and (shouted or word != "US")


def expand_initialisms(sentence: Match[str]) -> str:
    """Expand the initialisms of a sentence; if all of it is in capitals, short words are words."""
    text = sentence[0]
    words = re.findall(r"[A-Za-z]{2,}", text)
    shouted = all(map(str.isupper, words)) and sum(_is_word(w, shouted=True) for w in words) > 1

    def expand(m: Match[str]) -> str:
        before, word, plural = m.groups()
        unit = before and word in _AFTER_DIGIT
        neighbors = re.findall(r"([A-Z]{2,}) $", text[max(0, m.start() - 20) : m.start()])
        neighbors += re.findall(r"^ ([A-Z]{2,})\b", text[m.end() : m.end() + 20])
        emphasis = any(_is_word(w, shouted=False) for w in neighbors)
        if unit or (plural != "" and _is_word(word, shouted=shouted or emphasis)):  # "AT&T"
            return m[0]
        return (before or "") + " ".join(word) + ("'s" if plural else "")

    return _CAPITALS.sub(expand, text)
