"""Texts: twenty for parity, and the sentences on which the built-in model is measured."""

from __future__ import annotations

from helpers.common import ROOT

# short, long, numbers, quotes, other scripts, odd punctuation
TEXTS = (
    "Hello.",
    "The quick brown fox jumps over the lazy dog.",
    "is it so? I think... maybe not!",
    "Dr. Smith paid $3.50 to Mr. Jones on Jan. 3rd, 2024.",
    "“Quoted,” she said — ‘really’; and: so on",
    "A",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "ALL CAPITALS SHOUT LOUDLY",
    "naïve café déjà vu über straße",
    "  leading   and trailing   blanks  ",
    "No full stop at the end",
    "Tabs\tand\nnew lines\r\nin between.",
    "1234567890",
    "x = (a + b) / 2, right?",
    "Она сказала привет.",
    "今天天气很好",
    "Emoji 🎉 in the middle.",
    "hyphen-ated words - and dashes",
    "Why? Because! Well, then; that: is it.",
    "In the beginning there was a very long sentence that went on and on, with clauses, with "
    "asides (like this one), with numbers such as 42 and 3.14159, and with no end in sight.",
)


def everyday(count: int | None = None) -> list[str]:
    """The first sentences of daily life; None: all."""
    path = ROOT / "training" / "pico" / "sentences" / "everyday.txt"
    return path.read_text(encoding="utf-8").splitlines()[:count]
