"""Captions of .ass and .ssa files, read by pysubs2.

Responsible for which events are captions. Not responsible for the format (pysubs2) or for what of a
caption is shown_text (captions.py).
"""

from __future__ import annotations

import re

from chatterbox_opt.batch.readers.captions import REPEATS, Captions, Cue, rows_of
from chatterbox_opt.batch.readers.rows import Dropped, Parsed
from chatterbox_opt.errors import InputError

COMMENTS, DRAWINGS = "comments", "drawings"


_SECTION = re.compile(
    r"\[(script info|v4\+* styles|events|fonts|graphics|aegisub.*)\]", re.IGNORECASE
)
_KINDS = ("Format:", "Dialogue:", "Comment:", "Picture:", "Sound:", "Movie:", "Command:", ";", "!:")


def read_substation(name: str, text: str, captions: Captions) -> Parsed:
    """Rows of a SubStation Alpha file, in the order of their times.

    Raises:
        InputError: malformed, or an event that pysubs2 leaves out.
    """
    import pysubs2

    _check_lines(name, text)
    try:
        file = pysubs2.SSAFile.from_string(text, format_="ass")
    except (ValueError, pysubs2.exceptions.Pysubs2Error) as error:
        raise InputError(f"{name} is not SubStation Alpha ({error}): save it again") from error
    written = sum(line.lstrip().startswith(("Dialogue:", "Comment:")) for line in text.split("\n"))
    if len(file.events) != written:
        raise InputError(
            f"{name} has {written} events, {len(file.events)} of them below [Events] and its "
            "Format line: save it again"
        )
    dropped: list[Dropped] = []
    cues: list[Cue] = []
    shown: set[tuple[int, int, str]] = set()
    ordered = sorted(enumerate(file.events, 1), key=lambda numbered: numbered[1].start)
    for number, event in ordered:
        shown_text = event.plaintext.strip()
        # an effect is made of several layers with the same words
        layer = (event.start, event.end, shown_text)
        if event.is_comment or event.is_drawing or layer in shown:
            reason = COMMENTS if event.is_comment else DRAWINGS if event.is_drawing else REPEATS
            dropped.append(Dropped(reason, shown_text, number))
            continue
        shown.add(layer)
        lines = tuple(shown_text.split("\n"))
        cues.append(Cue(number, event.start / 1000, event.end / 1000, lines, event.name.strip()))
    parsed = rows_of(cues, captions)
    parsed.dropped = dropped + parsed.dropped
    return parsed


def _check_lines(name: str, text: str) -> None:
    """Raise InputError for a line below [Events] that is no event: pysubs2 would pass over it."""
    in_events = False
    for row, line in enumerate(text.split("\n"), 1):
        content = line.strip()
        if section := _SECTION.fullmatch(content):
            in_events = section[1].lower() == "events"
        elif in_events and content and not content.startswith(_KINDS):
            raise InputError(
                f"{name} line {row}: '{content[:60]}' is no event; a text is one line, "
                "with \\N for line breaks"
            )
