"""What is read aloud of a written text, and what is not.

Responsible for the value and for its one-line summary. Not responsible for any rule (markup.py,
folding.py, normalizer.py); imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from re import Match

_NAMED = 5  # dropped runs that a message quotes
_QUOTED = 40  # characters of each


@dataclass(frozen=True, slots=True)
class Dropped:
    """A run of characters with a letter or digit that is not read aloud.

    Attributes:
        text: as it was written.
        reason: why, a noun: "another script", "HTML tag".
    """

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A text on its way from written to read, or at its end.

    Attributes:
        text: what is read aloud.
        dropped: what is not. Marks without a letter or digit, such as emoji, are not counted.
    """

    text: str
    dropped: tuple[Dropped, ...] = ()

    def replace(
        self, pattern: re.Pattern[str], words: str | Callable[[Match[str]], str]
    ) -> Reading:
        """Replace each match by a template or by what a function makes of it.

        A blank separates what is inserted from a letter or digit next to the match, so that a word
        of the text never becomes part of a word that was not written.
        """

        parts: list[str] = []
        end, last = 0, ""  # of the text that is done: its length, and what was written last
        for m in pattern.finditer(self.text):
            new = m.expand(words) if isinstance(words, str) else words(m)
            before = (self.text[end : m.start()] or last)[-1:]
            after = self.text[m.end() : m.end() + 1]
            left = " " if before.isalnum() and new[:1].isalpha() else ""
            right = " " if after.isalnum() and new[-1:].isalpha() else ""
            parts += [self.text[end : m.start()], left, new, right]
            end, last = m.end(), (new + right or before)
        return Reading("".join([*parts, self.text[end:]]), self.dropped)

    def drop(self, pattern: re.Pattern[str], reason: str, instead: str = " ") -> Reading:
        """Replace each match by a template, and count the match, or its group ``gone``."""
        runs: list[Dropped] = []

        def note(m: Match[str]) -> str:
            run = (m["gone"] if "gone" in pattern.groupindex else m[0]) or ""
            if any(c.isalnum() for c in run):
                runs.append(Dropped(run.strip(), reason))
            return m.expand(instead)

        text = pattern.sub(note, self.text)
        return Reading(text, (*self.dropped, *runs))

    @property
    def summary(self) -> str:
        """One line about what was dropped: "2 words dropped, which this model cannot read: …"."""
        count = len(self.dropped)
        return (
            f"{count} word{'s' * (count != 1)} dropped, which this model cannot read: {self.names}"
        )

    @property
    def names(self) -> str:
        """The first of the dropped runs in quotes, and how many more there are."""
        quoted = [f"'{_shortened(run.text)}'" for run in self.dropped[:_NAMED]]
        more = len(self.dropped) - len(quoted)
        return ", ".join(quoted) + f" and {more} more" * (more > 0)


def _shortened(run: str) -> str:
    run = " ".join(run.split())
    return run if len(run) <= _QUOTED else run[: _QUOTED - 1] + "…"
