"""Which of the words that a person wrote is heard in which of the words that the model read.

Responsible for aligning two texts: "7:45" with "seven forty five", a dropped word with nothing. Not
responsible for respelling (script/), for reading (text/) or for times (timing.py).

What a lexicon or markup puts in place of a word is known, part by part, and is looked up. What the
model makes of that text is not: the text and what is read are aligned. Both are cut into runs of
letters and digits. They are equal nearly everywhere; where they are not, the shortest edit between
a window of both is taken, which grows until they agree again behind it. So the work is linear in
the length of a text, whatever was rewritten in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from chatterbox_opt.errors import TextError
from chatterbox_opt.script.spans import Part

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# each letter of a word in capitals is one: the model may read it by letters, "B B C"
_RUN = re.compile(r"[A-Z](?=[A-Z]|s\b)|(?<=[A-Z])[A-Z]\b|[^\W_]+")
_AS_WRITTEN = re.compile(r"\W*[^\W\d_]+\W*")  # read as it is, but for abbreviations
WINDOW, LARGEST_WINDOW = 16, 2048  # runs of letters
AGREE = 3  # equal runs behind a difference, at which a window ends
# of a run that only one text has, and of one for another: as much but for a tie (_shortest_edit)
_EDIT, _CHANGE = LARGEST_WINDOW + 1, LARGEST_WINDOW + 2
_NONE = -1
Reader = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class WrittenWord:
    """A word that a person wrote, and where it is in a chunk.

    Attributes:
        text: as it was written.
        first, last: the chunk's words that are read for it, from ``first`` to ``last`` - 1.
    """

    text: str
    first: int
    last: int


def written_words(
    parts: Sequence[Part], chunks: Sequence[str], read: Reader | None = None
) -> list[list[WrittenWord]]:
    """For each chunk the written words that are heard in it, in their order.

    Every written word is in one chunk at most, and there once. A word that is not read, such as a
    dash or one that the model does not know, is in none. A read word belongs to one written word,
    unless it has no letter or digit, stands for nothing that was written, or its word began in the
    chunk before. A respelled word has the words of its own respelling.

    Args:
        parts: what the person wrote, and what stands in its place in the text for the model.
        chunks: what the model reads of that text, normalized.
        read: what it reads for a single word; None: what is in the text.
    """
    words = "".join(part.written for part in parts).split()
    text = "".join(part.text for part in parts).split()
    read_words = [chunk.split() for chunk in chunks]
    origins = [*_origins(parts, len(text)), _NONE]  # the last one is that of no word
    owners = _owners(text, [word for chunk in read_words for word in chunk], read)
    found: list[list[WrittenWord]] = []
    last, position = _NONE, 0
    for chunk in read_words:
        spans: dict[int, tuple[int, int]] = {}
        for index, owner in enumerate(owners[position : position + len(chunk)]):
            origin = origins[owner]
            if origin > last:
                spans[origin] = (spans.get(origin, (index, 0))[0], index + 1)
        found.append([WrittenWord(words[origin], *span) for origin, span in spans.items()])
        last, position = max((last, *spans)), position + len(chunk)
    return found


def _origins(parts: Sequence[Part], count: int) -> list[int]:
    """For each word of the text the index of the written one in whose place it is; not falling, but
    for ``_NONE``: it is in the place of none.

    Args:
        count: words of the text.
    """
    origins = [_NONE] * count
    firsts = zip(
        parts,
        _first_words(part.text for part in parts),
        _first_words(part.written for part in parts),
        strict=True,
    )
    for part, at, first in firsts:
        for index, origin in enumerate(_origins_within(part), at):
            if origins[index] == _NONE:  # of several parts of a word the first one decides
                origins[index] = first + origin
    return origins


def _origins_within(part: Part) -> Iterable[int]:
    """The same for one part; nothing, if it has no written word."""
    words, text = part.written.split(), part.text.split()
    if part.is_literal:
        return range(len(words))
    # a word without a letter belongs to the one before it: the model may have a name for it
    owners = _owners(words, text) if words else ()
    return accumulate((max(owner, 0) for owner in owners), max)


def _first_words(texts: Iterable[str]) -> Iterator[int]:
    """For each part of a text the index that its first word has in all of it; that may have begun
    in the parts before."""
    begun, is_open = 0, False
    for text in texts:
        goes_on = is_open and text != "" and not text[0].isspace()
        yield begun - goes_on
        begun += len(text.split()) - goes_on
        is_open = not text[-1].isspace() if text else is_open


def _owners(
    words: Sequence[str], read_words: Sequence[str], read: Reader | None = None
) -> list[int]:
    """For each read word the index of its written word; not falling, but for ``_NONE``."""
    written_of, written = _runs(words, read)
    read_of, heard = _runs(read_words)
    if not written:  # nothing but signs, which somebody has given a name
        return [0 if any(c.isalnum() for c in word) else _NONE for word in read_words]
    owners = [_NONE] * len(read_words)
    for run, match in reversed(list(enumerate(_filled(_matches(written, heard), written, heard)))):
        owners[read_of[run]] = written_of[match]  # of several runs of a word the first one decides
    return owners


def _filled(matches: Sequence[int], written: Sequence[str], heard: Sequence[str]) -> list[int]:
    """Matches without ``_NONE``.

    "the third" of "the third of" belongs to what "of" was heard for, as they differ from what was
    written; what stands between equal runs belongs to the one before it.
    """
    filled = list(matches)
    for run in reversed(range(len(filled) - 1)):
        behind = filled[run + 1]
        if filled[run] == _NONE and behind != _NONE and written[behind] != heard[run + 1]:
            filled[run] = behind
    last = 0
    for run, match in enumerate(filled):
        last = filled[run] = last if match == _NONE else match
    return filled


def _runs(words: Sequence[str], read: Reader | None = None) -> tuple[list[int], list[str]]:
    """Runs of letters and digits in small letters, each with the index of its word."""
    of_word: list[int] = []
    runs: list[str] = []
    for index, word in enumerate(words):
        spelled = word if read is None or _AS_WRITTEN.fullmatch(word) else read(word)
        found = [run.casefold() for run in _RUN.findall(spelled)]
        of_word += [index] * len(found)
        runs += found
    return of_word, runs


def _matches(written: Sequence[str], heard: Sequence[str]) -> list[int]:
    """For each heard run the written one that it is aligned with, rising; ``_NONE`` for none."""
    matches: list[int] = []
    i = j = 0
    while j < len(heard):
        if i < len(written) and written[i] == heard[j]:
            matches.append(i)
            i, j = i + 1, j + 1
            continue
        steps_i, found = _differing(written[i : i + LARGEST_WINDOW], heard[j : j + LARGEST_WINDOW])
        matches += [match if match == _NONE else i + match for match in found]
        i, j = i + steps_i, j + len(found)
    return matches


def _differing(written: Sequence[str], heard: Sequence[str]) -> tuple[int, list[int]]:
    """The alignment of two texts that begin differently, up to where they agree again.

    Returns:
        number of written runs that are used up, and the match of each heard run that is.
    """
    size = WINDOW
    while True:
        pairs = _shortest_edit(written[:size], heard[:size])
        is_all = size >= max(len(written), len(heard))
        end = len(pairs) if is_all else _agreement(pairs, written, heard)
        if end or size >= LARGEST_WINDOW:
            pairs = pairs[: end or len(pairs)]
            return (
                sum(i != _NONE for i, _ in pairs),
                [i for i, j in pairs if j != _NONE],
            )
        size *= 2


def _agreement(
    pairs: Sequence[tuple[int, int]], written: Sequence[str], heard: Sequence[str]
) -> int:
    """How many pairs there are up to the first ``AGREE`` equal ones in a row; 0 for none."""
    equal = 0
    for position, (i, j) in enumerate(pairs):
        is_equal = _NONE not in (i, j) and written[i] == heard[j]
        equal = equal + 1 if is_equal else 0
        if equal == AGREE:
            return position + 1
    return 0


def _shortest_edit(written: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of indices, ``_NONE`` where one side has nothing (Wagner and Fischer 1974).

    Of several edits that are as short, the one with the most equal runs: "$5 million" and "five
    million dollars" have "million" in common.
    """
    costs = _edit_costs(written, heard)
    pairs: list[tuple[int, int]] = []
    i, j = len(written), len(heard)
    while i or j:
        cost = costs[i, j]
        if i and j and cost - costs[i - 1, j - 1] == _CHANGE * (written[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif j and cost - costs[i, j - 1] == _EDIT:
            j -= 1
            pairs.append((_NONE, j))
        else:
            i -= 1
            pairs.append((i, _NONE))
    return pairs[::-1]


def _edit_costs(written: Sequence[str], heard: Sequence[str]) -> npt.NDArray[np.int32]:
    """int32 [written + 1, heard + 1]: the edits between all beginnings of both, a row at a time."""
    import numpy as np

    numbers = {run: number for number, run in enumerate({*written, *heard})}
    columns = np.array([numbers[run] for run in heard], dtype=np.int32)
    offsets = np.arange(len(heard) + 1, dtype=np.int32) * _EDIT
    costs = np.empty((len(written) + 1, len(heard) + 1), dtype=np.int32)
    costs[0] = offsets
    for i, run in enumerate(written, 1):
        row, above = costs[i], costs[i - 1]
        row[0] = i * _EDIT
        changes = (columns != numbers[run]) * np.int32(_CHANGE)
        np.minimum(above[1:] + _EDIT, above[:-1] + changes, out=row[1:])
        # a run that only was heard: the least of all cells to the left, one more for each step
        np.minimum.accumulate(row - offsets, out=row)
        row += offsets
    return costs


@functools.lru_cache(maxsize=4096)
def english_words(word: str) -> str:
    """What the built-in model reads for a word alone, or for a sign between words; may be ""."""
    # only for the model that needs it
    from chatterbox_opt.text.english.normalizer import read_english

    if not any(c.isalnum() for c in word):
        return " ".join(read_english(f"so {word} so").text.split()[1:-1])
    try:
        return read_english(word).text
    except TextError:
        return ""
