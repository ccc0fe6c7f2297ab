"""Words as captions: cues of a sentence, or of a part of one, in lines that can be read.

Responsible for where a cue and a line end. Not responsible for file formats (caption_files.py) or
for when a word is heard (timing.py). Imports neither torch nor numpy.

The limits are those of broadcasters' style guides (BBC, Netflix): two lines of 42 characters, seven
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import sentencex

from chatterbox_opt.config.model_config import MULTILINGUAL_TEXT
from chatterbox_opt.text.languages import AUTO
from chatterbox_opt.text.rules import TextRules
from chatterbox_opt.words.word import Word

WIDTH, LINES = 42, 2  # characters of a line, lines of a cue
LONGEST = 7.0  # seconds of a cue
PAUSE = 0.7  # seconds of silence in a sentence, at which a cue ends
CLAUSE = (",", ";", ":", "–", "—", ")", "،", "؛")  # after these a cue may end, if it is long enough
ROOM = WIDTH * LINES * 2 // 3  # characters at which it is


@dataclass(frozen=True, slots=True)
class CaptionCue:
    """What is shown at once.

    Attributes:
        lines: the words of each line: one or two.
    """

    lines: tuple[tuple[Word, ...], ...]

    @property
    def start(self) -> float:
        """Seconds, of its first word."""
        return self.lines[0][0].start

    @property
    def end(self) -> float:
        """Seconds, of its last word."""
        return self.lines[-1][-1].end


def cues_of(words: Iterable[Word], language: str | None = None) -> Iterator[CaptionCue]:
    """Cues of all words, in order.

    Args:
        language: of the text, for its abbreviations; None: English.
    """
    rules = TextRules(MULTILINGUAL_TEXT, None if language == AUTO else language)
    for _, chunk in groupby(words, key=lambda word: word.chunk):
        for sentence in _sentences(list(chunk), rules.sentence_language):
            for part in _cues(list(_short(sentence))):
                yield CaptionCue(_lines(part))


def _sentences(words: Sequence[Word], language: str) -> Iterator[list[Word]]:
    """The words of each sentence; they are of one chunk."""
    begin = position = 0
    ends = set()
    for sentence in sentencex.segment(language, " ".join(word.text for word in words)):
        position += len(sentence)
        ends.add(len(sentence.rstrip()) + position - len(sentence))
    position = -1
    for index, word in enumerate(words, 1):
        position += 1 + len(word.text)
        if position in ends or index == len(words):
            yield list(words[begin:index])
            begin = index


def _short(words: Iterable[Word]) -> Iterator[Word]:
    """A word that is longer than a line, such as an address, in parts of a line."""
    for word in words:
        seconds = (word.end - word.start) / max(len(word.text), 1)
        for at in range(0, len(word.text), WIDTH):
            part = word.text[at : at + WIDTH]
            start = word.start + at * seconds
            yield replace(word, text=part, start=start, end=start + len(part) * seconds)


def _cues(words: Sequence[Word]) -> Iterator[list[Word]]:
    """A sentence in parts that fit, cut at pauses, where one is full, and at clauses."""
    cue: list[Word] = []
    for word in words:
        if cue and not _goes_on(cue, word):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _goes_on(cue: Sequence[Word], word: Word) -> bool:
    last = cue[-1]
    if word.start - last.end >= PAUSE or word.end - cue[0].start > LONGEST:
        return False
    if _length(cue) >= ROOM and last.text.endswith(CLAUSE):
        return False
    return _fits([*cue, word])


def _fits(words: Sequence[Word]) -> bool:
    """Whether words fit into a cue, filled line by line."""
    lines, length = 1, -1
    for word in words:
        if length + 1 + len(word.text) > WIDTH:
            lines, length = lines + 1, -1
        length += 1 + len(word.text)
    return lines <= LINES


def _lines(words: Sequence[Word]) -> tuple[tuple[Word, ...], ...]:
    """One line, or two of about the same length."""
    if _length(words) <= WIDTH:
        return (tuple(words),)
    halves = [(words[:i], words[i:]) for i in range(1, len(words))]
    fitting = [half for half in halves if max(map(_length, half)) <= WIDTH]
    first, second = min(fitting, key=lambda half: abs(_length(half[0]) - _length(half[1])))
    return tuple(first), tuple(second)


def _length(words: Sequence[Word]) -> int:
    return sum(len(word.text) for word in words) + len(words) - 1
