"""Text that arrives in pieces: a sentence becomes a chunk as soon as it is certainly complete.

Responsible for when it is decided where a text that still grows is split. Not responsible for one
such decision (sentence_ends.py), reading (arriving.py), lengths and characters (chunking.py) or
numbers as words (english/).

The splitter is chunking's (sentencex). It sees only the sentence that is not decided yet, at each
place where one may end. A sentence has ended if

- a word follows it, and sentencex splits there: with any following word, or with this one when it
  is complete ("5 p.m." needs that); or
- a line ends there, and sentencex would split before any word; or
- the paragraph or the text ends, or ``flush`` is called (the writer pauses).

Within quotes and brackets that are not closed yet there is no end, unless the text becomes longer
than one chunk: then it is split as chunking does. The characters are read one by one, so the chunks
do not depend on how the text was cut into pieces.

Silence: when a chunk is given out it may be the last. So its pause is 0 if the text after it is not
known. What is due before the next chunk comes as a chunk without text when that one begins: the sum
is what chunking would give.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from chatterbox_opt.text.chunking import (
    PARAGRAPH_PAUSE,
    SCENE_PAUSE,
    SENTENCE_PAUSE,
    Chunk,
    chunk_of,
    clean,
    fits,
    has_speech,
    pack,
    remove_controls,
)
from chatterbox_opt.text.rules import ENGLISH_RULES, LIMIT, TextRules
from chatterbox_opt.text.sentence_ends import (
    ANY_WORD,
    begins_dense,
    end_of_words,
    ends_dense,
    has_only_marks,
    is_end,
    is_reference,
    may_end,
)

_LINE_ENDS = {0x85: "\n", 0x2028: "\n", 0x2029: "\n\n"}
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HIGH_SURROGATE = re.compile("[\ud800-\udbff]\\Z")


class IncrementalSplitter:
    """Turns text that arrives in pieces into chunks.

    Every chunk has at most ``limit`` characters after normalization. Nothing is lost, doubled or
    reordered. Not for several threads.
    """

    def __init__(self, limit: int = LIMIT, rules: TextRules = ENGLISH_RULES) -> None:
        self._limit, self._rules = limit, rules
        self._line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        self._half = ""  # the first half of a surrogate pair
        self._position = 0  # characters
        self._tail = ""  # undecided; one blank for each run of blanks, none at its ends
        self._candidate: int | None = None  # where a sentence of the tail may end
        self._spaces = 0  # the tail's last word is complete
        self._lines = 0  # line ends among these blanks
        self._has_sign = False  # the paragraph has something visible
        self._has_speech = False  # the paragraph has a word
        self._due: float | None = None  # seconds from the last chunk to the next; None: no chunk
        self._given = 0.0  # of these, the pause of the last chunk
        self._seen = ""  # something visible, for the message about a text without words

    def feed(self, piece: str) -> list[Chunk]:
        """Take the next piece of the text; return the chunks that are complete now, one each
        sentence. ``pack`` joins them.

        Raises:
            TextError: a NUL byte, or a surrogate without its other half.
        """
        chunks: list[Chunk] = []
        for character in self._decoded(piece, final=False):
            chunks += self._add(character)
        return chunks

    def flush(self) -> list[Chunk]:
        """Return what is there, because the writer pauses: all but a word or tag that may go on."""
        end = len(self._tail) if self._spaces else end_of_words(self._tail)
        end = self._rules.outside_tags(self._tail, end)
        if end == len(self._tail):
            return self._give_rest()
        rest, self._tail = self._tail[end:], self._tail[:end].rstrip()
        chunks = self._give_rest()
        self._tail = rest
        return chunks

    def end(self) -> list[Chunk]:
        """Return what is left, because the text ends here.

        Raises:
            TextError: the text had no letter or digit; a surrogate without its other half.
        """
        chunks: list[Chunk] = []
        for character in self._decoded("", final=True):
            chunks += self._add(character)
        chunks += self._give_rest()
        if self._due is None:
            clean(self._seen)
        return chunks

    def _decoded(self, piece: str, *, final: bool) -> str:
        """``piece`` without control characters, its line ends as ``\\n``.

        A character that the next piece may change is kept for it.
        """
        text = self._half + piece
        half = None if final else _HIGH_SURROGATE.search(text)
        self._half = half[0] if half else ""
        text = text[: len(text) - len(self._half)]
        joined = _PAIR.sub(lambda m: m[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
        cleaned = remove_controls(joined, self._position)
        self._position += len(joined)
        return self._line_ends.decode(cleaned, final).translate(_LINE_ENDS)

    def _add(self, c: str) -> list[Chunk]:
        if c.isspace():
            return self._add_space(c)
        if self._spaces:
            self._begin_word()
        elif self._candidate is None and ends_dense(self._tail) and begins_dense(c):
            self._candidate = len(self._tail)
        undecided = self._candidate
        self._tail += c
        self._has_sign = True
        self._seen = self._seen or c
        if c.isalnum():
            self._has_speech = True
            if undecided is not None and not has_speech(self._tail[undecided:-1]):
                return self._decide_by_letter(c)
        if len(self._tail) > 2 * self._limit:  # a word without an end
            return self._give_full()
        return []

    def _add_space(self, c: str) -> list[Chunk]:
        chunks: list[Chunk] = []
        if not self._spaces and self._tail:
            chunks += self._decide_by_word()
            chunks += self._give_full()
        self._spaces += 1
        if c == "\n":
            self._lines += 1
            if self._lines == 1 and may_end(self._tail) and self._ends(len(self._tail)):
                chunks += self._give(self._tail, 0.0)
                self._tail, self._candidate = "", None
            elif self._lines == 2:  # an empty line
                chunks += self._end_paragraph()
        return chunks

    def _begin_word(self) -> None:
        self._spaces = self._lines = 0
        if not self._tail:
            return
        only_marks = self._candidate is not None and has_only_marks(self._tail[self._candidate :])
        if may_end(self._tail) and (self._candidate is None or only_marks):
            self._candidate = len(self._tail)
        self._tail += " "

    def _end_paragraph(self) -> list[Chunk]:
        chunks = self._give_rest()
        if self._due is not None and self._has_sign:
            pause = PARAGRAPH_PAUSE if self._has_speech else SCENE_PAUSE
            self._due = max(self._due, pause)
        self._has_sign = self._has_speech = False
        return chunks

    def _decide_by_letter(self, first: str) -> list[Chunk]:
        """At the first letter after the candidate: is it an end before any word?"""
        end = self._candidate or 0
        if first.isdigit() and self._tail[-2:-1] == "[":  # perhaps a reference
            return []
        if self._ends(end):
            return self._split(end)
        if self._tail[end] == " ":
            return []
        self._candidate = None
        return self._split(end) if self._ends(end, (first,)) else []

    def _decide_by_word(self) -> list[Chunk]:
        """At the end of the word after the candidate: is it an end before this word?"""
        end = self._candidate
        if end is None:
            return []
        after = self._tail[end:]
        start = next((i for i, c in enumerate(after) if c.isalnum()), None)
        if start is None:  # a dash or an emoji: its word is still to come
            return []
        self._candidate = None
        if is_reference(after):
            return []
        return self._split(end) if self._ends(end, (after[start:] + " ",)) else []

    def _ends(self, end: int, words: tuple[str, ...] = ANY_WORD) -> bool:
        """Whether sentencex ends a sentence at ``end`` of the tail with each of these after it."""
        space = "" if self._tail[end : end + 1].strip() else " "
        return is_end(self._tail[:end], space, words, self._rules.sentence_language)

    def _split(self, end: int) -> list[Chunk]:
        chunks = self._give(self._tail[:end], SENTENCE_PAUSE)
        self._tail, self._candidate = self._tail[end:].lstrip(), None
        return chunks

    def _give_full(self) -> list[Chunk]:
        """If the tail is longer than a chunk: give out all of its chunks but the last."""
        if fits(self._tail, self._limit, self._rules):
            return []
        *full, rest = pack(self._tail, self._limit, self._rules)
        self._tail, self._candidate = rest.lstrip(), None
        return [chunk for text in full for chunk in self._give(text, SENTENCE_PAUSE)]

    def _give_rest(self) -> list[Chunk]:
        tail, self._tail, self._candidate = self._tail, "", None
        return self._give(tail, 0.0)

    def _give(self, text: str, pause: float) -> list[Chunk]:
        """The chunks of a decided text, after the silence that is due.

        Args:
            pause: seconds after it, as far as it is known.
        """
        parts = pack(text, self._limit, self._rules)
        chunks = [
            chunk_of(part.strip(), self._rules, SENTENCE_PAUSE)
            for part in parts
            if has_speech(part)
        ]
        if not chunks:
            return []
        chunks[-1] = replace(chunks[-1], pause=pause)
        if self._due is not None and self._due > self._given:
            chunks.insert(0, Chunk("", self._due - self._given))
        self._due = SENTENCE_PAUSE if may_end(text.rstrip()) else pause
        self._given = pause
        return chunks


def chunks_of(
    pieces: Iterable[str | None], limit: int = LIMIT, rules: TextRules = ENGLISH_RULES
) -> Iterator[Chunk]:
    """Yield chunks of a text that arrives in pieces, each as soon as it is complete.

    Sentences that one piece completes are joined up to ``limit``, except the first of the text: it
    is spoken at once. A chunk without text is silence.

    Args:
        pieces: of any size, cut anywhere; None: the writer pauses, what is there is given out.

    Raises:
        TextError: as ``IncrementalSplitter``; a text without a letter or digit.
    """
    splitter = IncrementalSplitter(limit, rules)
    chunks: list[Chunk] = []
    is_first = True
    for piece in pieces:
        chunks = splitter.flush() if piece is None else splitter.feed(piece)
        if is_first and chunks:
            yield chunks.pop(0)
            is_first = False
        yield from join_chunks(chunks, limit, rules)
    yield from join_chunks(splitter.end(), limit, rules)


def join_chunks(
    chunks: Iterable[Chunk], limit: int = LIMIT, rules: TextRules = ENGLISH_RULES
) -> list[Chunk]:
    """Join sentences of one paragraph up to ``limit``; silence becomes the pause before it."""
    joined: list[Chunk] = []
    for chunk in chunks:
        last = joined[-1] if joined else None
        if last and not chunk.text:
            joined[-1] = replace(last, pause=last.pause + chunk.pause)
        elif last and last.text and last.pause <= SENTENCE_PAUSE:
            space = "" if rules.joins_dense and ends_dense(last.source) else " "
            source = last.source + space + chunk.source
            if fits(source, limit, rules):
                joined[-1] = chunk_of(source, rules, chunk.pause)
            else:
                joined.append(chunk)
        else:
            joined.append(chunk)
    return joined
