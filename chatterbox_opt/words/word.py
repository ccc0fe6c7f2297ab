"""A word and when it is heard; the words of pieces put together.

Responsible for these values. Not responsible for finding times (timing.py) or for which words a
person wrote (written.py). Imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Word:
    """A word as the person wrote it, and when it is heard.

    Attributes:
        text: with its punctuation, without blanks.
        start, end: in seconds; of a ``Piece``'s words from the beginning of its chunk, of a
            ``Result``'s and an ``Audio``'s from the beginning of the whole.
        chunk: index of its chunk in the text, from 0.
    """

    text: str
    start: float
    end: float
    chunk: int = 0

    def later(self, seconds: float) -> Word:
        """The word, so many seconds later, in milliseconds."""
        start, end = round(self.start + seconds, 3), round(self.end + seconds, 3)
        return replace(self, start=start, end=end)


class TimedPiece(Protocol):
    """Sound with the words of its chunk: a ``Piece``."""

    @property
    def words(self) -> tuple[Word, ...]:
        """In seconds of the chunk."""

    @property
    def duration(self) -> float:
        """Seconds, with the pause after it."""

    @property
    def ends_chunk(self) -> bool:
        """Whether it is the last one of its chunk."""


class Timeline:
    """Words of pieces that are heard one after the other.

    Attributes:
        words: of the pieces so far, in seconds of the whole.
    """

    def __init__(self) -> None:
        self.words: list[Word] = []
        self._chunk = self._end = 0.0  # where the present chunk began, and the pieces so far end

    def add(self, piece: TimedPiece) -> None:
        """Append a piece."""
        self.words += [word.later(self._chunk) for word in piece.words]
        self._end += piece.duration
        if piece.ends_chunk:
            self._chunk = self._end


def joined(pieces: Iterable[TimedPiece]) -> tuple[Word, ...]:
    """The words of pieces that are heard one after the other, in seconds of the whole."""
    timeline = Timeline()
    for piece in pieces:
        timeline.add(piece)
    return tuple(timeline.words)
