"""Lexicons: words and phrases, and how they are said: "Nguyen" as "win".

Responsible for the file's format, for finding its words in a text, and for where a user's own file
is. Not responsible for markup, or for what a model makes of a respelling.

    nguyen: win              # small letters: in any case; the first letter's case is kept
    SQL: sequel              # with a capital: only as it is written here
    New York City: the city
    /v(\\d+)\\.(\\d+)/: version \\1 point \\2     # a regular expression between slashes
    de:                      # a language's code: only in texts of that language
      Chef: Scheff

A word is replaced where it is whole: "Nguyen's", but not "Nguyens". What was replaced is not read
again, so that two words may be exchanged. Of two that begin at one place the longer one is taken.
Typographic apostrophes and straight ones are the same, and so are an accented letter and a letter
with a combining accent.

Regular expressions are those of the package regex, because it can be told to stop: a pattern that
takes longer than ``PATTERN_SECONDS`` over a text is refused, whatever it is.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chatterbox_opt.config.bounded_yaml import made_of, shortened
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.text.languages import DENSE, LANGUAGES

VARIABLE = "CHATTERBOX_LEXICON"
FILE = "lexicon.yaml"  # in the user's configuration directory
MAX_BYTES = 256 << 10  # of a file: about 10,000 words
MAX_LETTERS = 1000  # of a word, a pattern or what it is replaced by
MAX_PATTERNS = 100
PATTERN_SECONDS = 1.0  # of one pattern, in one text
_FORMAT = "write word: how it is said"
_WORD = re.compile(r"\w+")
_APOSTROPHE = re.compile("[’ʼ‘ʻ＇]")
_DENSE = re.compile(f"[{DENSE}]")


@dataclass(frozen=True, slots=True)
class Entry:
    """A word of a lexicon.

    Attributes:
        word: or phrase, or a regular expression.
        respelling: what is read in its place; of a pattern, a template.
        language: of the texts in which it is replaced, a code; None: of all.
        is_pattern: whether ``word`` is a regular expression.
    """

    word: str
    respelling: str
    language: str | None = None
    is_pattern: bool = False

    def __post_init__(self) -> None:
        if not any(c.isalnum() for c in self.word) or not self.respelling.strip():
            raise InputError(f"lexicon: {shortened(self.word)} or what it is said as has no letter")
        if len(self.word) > MAX_LETTERS or len(self.respelling) > MAX_LETTERS:
            raise InputError(f"lexicon: {shortened(self.word)} has more than {MAX_LETTERS} letters")
        if self.is_pattern:
            self._check_pattern()

    def _check_pattern(self) -> None:
        import regex

        try:
            compiled = regex.compile(self.word)
            is_empty = compiled.fullmatch("", timeout=PATTERN_SECONDS) is not None
            # a template is only read when something is replaced: here, by the empty alternative
            regex.compile(f"|{self.word}").sub(
                self.respelling, "", count=1, timeout=PATTERN_SECONDS
            )
        except (regex.error, IndexError, TimeoutError, OverflowError, RecursionError) as error:
            raise InputError(
                f"lexicon: the pattern {shortened(self.word)} is wrong ({error}): correct it"
            ) from error
        if is_empty:
            raise InputError(
                f"lexicon: the pattern {shortened(self.word)} matches no letter at all"
            )

    @property
    def any_case(self) -> bool:
        """Whether the word is found in any case: it is written without a capital."""
        return self.word == self.word.lower()

    def respelled(self, found: str) -> str:
        """What is read for the word as it was found."""
        if self.any_case and found[:1].isupper():
            return self.respelling[:1].upper() + self.respelling[1:]
        return self.respelling


@dataclass(frozen=True, slots=True)
class Match:
    """A word that was found in a text.

    Attributes:
        start, end: in the text.
        respelling: what is read there.
    """

    start: int
    end: int
    respelling: str


@dataclass(frozen=True)
class Lexicon:
    """Words and how they are said; equal by content.

    Attributes:
        entries: later ones win over earlier ones of the same word and language.
    """

    entries: tuple[Entry, ...] = ()

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Lexicon:
        """A lexicon from a mapping in the format of the file.

        Raises:
            InputError: a word or what it is said as is wrong.
        """
        return cls(tuple(_entries(words)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Lexicon:
        """Read a file.

        Raises:
            InputError: it cannot be read, or is no lexicon.
        """
        return made_of(path, "lexicon", cls.of, most=MAX_BYTES, remedy=_FORMAT)

    def __add__(self, other: Lexicon) -> Lexicon:
        """Both; the words of the other one win."""
        return Lexicon(self.entries + other.entries)

    def matches(self, text: str, language: str) -> list[Match]:
        """What is replaced in a text, in order, without overlaps.

        Args:
            language: of the text, a code.

        Raises:
            TextError: a pattern takes too long.
        """
        folded = _Folded.of(text)
        found = [*self._words(folded, language), *self._dense(folded, language)]
        found += self._patterns(text, language)
        found.sort(key=lambda match: (match.start, -match.end))
        chosen: list[Match] = []
        for match in found:
            if not chosen or match.start >= chosen[-1].end:
                chosen.append(match)
        return chosen

    @cached_property
    def _by_word(self) -> dict[str, list[tuple[int, Entry]]]:
        """Entries by their first word, in small letters, with the position of it; longest first."""
        index: dict[str, list[tuple[int, Entry]]] = {}
        for entry in _last(e for e in self.entries if not e.is_pattern):
            first = _WORD.search(_Folded.of(entry.word).text)
            if first is not None and not _DENSE.search(entry.word):
                index.setdefault(first[0].lower(), []).append((first.start(), entry))
        for entries in index.values():
            # as it is written before any case, a language's own before that of all languages
            entries.sort(
                key=lambda one: (-len(one[1].word), one[1].any_case, one[1].language is None)
            )
        return index

    @cached_property
    def _anywhere(self) -> list[Entry]:
        """Entries of scripts without spaces between words, a language's own first."""
        dense = (e for e in self.entries if not e.is_pattern and _DENSE.search(e.word))
        return sorted(_last(dense), key=lambda entry: entry.language is None)

    def _words(self, folded: _Folded, language: str) -> Iterator[Match]:
        index = self._by_word
        for word in _WORD.finditer(folded.text) if index else ():
            for offset, entry in index.get(word[0].lower(), ()):
                if entry.language not in (None, language) or word.start() < offset:
                    continue
                found = _pattern(entry).match(folded.text, word.start() - offset)
                if found is not None and _is_whole(found):
                    yield folded.match(*found.span(), entry.respelled(found[0]))
                    break

    def _dense(self, folded: _Folded, language: str) -> Iterator[Match]:
        """Words that are found anywhere."""
        for entry in self._anywhere:
            if entry.language in (None, language):
                word = _Folded.of(entry.word).text
                at = folded.text.find(word)
                while at >= 0:
                    end = at + len(word)
                    yield folded.match(at, end, entry.respelling)
                    at = folded.text.find(word, end)

    def _patterns(self, text: str, language: str) -> Iterator[Match]:
        patterns = _last(e for e in self.entries if e.is_pattern and e.language in (None, language))
        if not patterns:
            return
        import regex

        for entry in patterns:
            try:
                for found in regex.compile(entry.word).finditer(text, timeout=PATTERN_SECONDS):
                    if found.end() > found.start():
                        yield Match(found.start(), found.end(), found.expand(entry.respelling))
            except TimeoutError as error:
                raise TextError(
                    f"the lexicon's pattern {shortened(entry.word)} takes longer than "
                    f"{PATTERN_SECONDS:g} s over a text: make it simpler"
                ) from error


def _last(entries: Iterable[Entry]) -> list[Entry]:
    """Of several entries of one word and language the last."""
    return list({(entry.word, entry.language): entry for entry in entries}.values())


def _pattern(entry: Entry) -> re.Pattern[str]:
    """The word, with any blanks between its words; ``re`` keeps what it compiles."""
    words = r"\s+".join(map(re.escape, _Folded.of(entry.word).text.split()))
    return re.compile(words, re.IGNORECASE if entry.any_case else 0)


def _is_whole(found: re.Match[str]) -> bool:
    """Whether no word goes on before or behind it; a mark belongs to the letter before it."""
    start, end = found.span()
    before, after = found.string[max(0, start - 1) : start], found.string[end : end + 1]
    begins = not (found[0][0].isalnum() and _in_word(before))
    return begins and not (_in_word(found[0][-1]) and _in_word(after))


def _in_word(c: str) -> bool:
    return c.isalnum() or c == "_" or _is_mark(c)


def _is_mark(c: str) -> bool:
    return unicodedata.category(c or " ").startswith("M")


@dataclass(frozen=True, slots=True)
class _Folded:
    """A text in which one spelling stands for all of a word.

    Attributes:
        text: composed (NFC), with straight apostrophes.
        starts: where each of its characters begins in the text as it was written; its end at last.
    """

    text: str
    starts: Sequence[int]

    @classmethod
    def of(cls, text: str) -> _Folded:
        """Fold a text."""
        if text.isascii():
            return cls(text, range(len(text) + 1))
        parts: list[str] = []
        starts: list[int] = []
        at = 0
        for cluster in _clusters(_APOSTROPHE.sub("'", text)):
            part = unicodedata.normalize("NFC", cluster)
            parts.append(part)
            starts += [at] * len(part)
            at += len(cluster)
        return cls("".join(parts), [*starts, at])

    def match(self, start: int, end: int, respelling: str) -> Match:
        """Between two of its characters, in the text as it was written."""
        return Match(self.starts[start], self.starts[end], respelling)


def _clusters(text: str) -> Iterator[str]:
    """Letters with what may be composed with them: marks, and the vowels and ends of Hangul."""
    start = 0
    for end, c in enumerate(text):
        if end and not (_is_mark(c) or "\u1160" <= c <= "\u11ff"):
            yield text[start:end]
            start = end
    yield text[start:]


def _entries(words: Mapping[str, Any], language: str | None = None) -> Iterator[Entry]:
    patterns = 0
    for word, respelling in words.items():
        if isinstance(respelling, Mapping) and language is None:
            if word not in LANGUAGES:
                raise InputError(
                    f"lexicon: {shortened(word)} is no language's code: {_FORMAT}, or one of "
                    f"{', '.join(LANGUAGES)} with words below it"
                )
            yield from _entries(respelling, word)
            continue
        if not isinstance(word, str) or not isinstance(respelling, str):
            raise InputError(
                f"lexicon: {shortened(word)} is said as {shortened(respelling)}: {_FORMAT}"
            )
        is_pattern = len(word) > 2 and word[0] == word[-1] == "/"
        patterns += is_pattern
        if patterns > MAX_PATTERNS:
            raise InputError(f"lexicon: it has more than {MAX_PATTERNS} patterns")
        yield Entry(word[1:-1] if is_pattern else word.strip(), respelling, language, is_pattern)


def users_own() -> Lexicon:
    """The lexicon in ``CHATTERBOX_LEXICON`` or the user's configuration directory; empty if there
    is none, or the variable is.

    Raises:
        InputError: it cannot be read, or is no lexicon.
    """
    import platformdirs

    if (named := os.environ.get(VARIABLE)) is not None:
        return Lexicon.load(named) if named else Lexicon()
    path = Path(platformdirs.user_config_dir("chatterbox-opt")) / FILE
    return Lexicon.load(path) if path.is_file() else Lexicon()
