"""Silence that a text asks for at its edges, where other items are before and behind it.

Responsible for how long it is. Not responsible for markup (script/), for silence inside a text,
which the engine makes, or for where it is put (joining/).
"""

from __future__ import annotations

from collections.abc import Iterable

from chatterbox_opt.script.spans import Script
from chatterbox_opt.text.chunking import has_speech


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum of the silences that were asked for; None: none was."""
    asked = [value for value in seconds if value is not None]
    return sum(asked) if asked else None


def edges(script: Script) -> tuple[float | None, float | None]:
    """Seconds of silence that are asked for before the first word and after the last one; None:
    none is. Without a word, all of it is before."""
    pauses = [span.pause for span in script.spans]
    with_words = [i for i, span in enumerate(script.spans) if has_speech(span.text)]
    first, last = (with_words[0], with_words[-1]) if with_words else (len(pauses), len(pauses))
    return total(pauses[: first + 1]), total(pauses[last + 1 :])
