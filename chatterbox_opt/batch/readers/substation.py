"""Captions of .ass and .ssa files, read by pysubs2.

Responsible for which events are captions. Not responsible for the format (pysubs2) or for what of a
caption is spoken (captions.py).
"""

from __future__ import annotations

import re
import warnings

from chatterbox_opt.batch.readers.captions import REPEATS, Captions, Cue, rows_of
from chatterbox_opt.batch.readers.rows import Dropped, Parsed
from chatterbox_opt.errors import InputError

COMMENTS, DRAWINGS = "comments", "drawings"
_SECTION = re.compile(
    r"\[(script info|v4\+* styles|events|fonts|graphics|aegisub.*)\]", re.IGNORECASE
)
_FORMAT = re.compile(
    r"Format:\s*(?:Layer|Marked),\s*Start,\s*End,\s*Style,\s*(?:Name|Actor),\s*MarginL,"
    r"\s*MarginR,\s*MarginV,\s*Effect,\s*Text",
    re.IGNORECASE,
)
COMMAS = 9  # before an event's text
_KINDS = ("Format:", "Dialogue:", "Comment:", "Picture:", "Sound:", "Movie:", "Command:", ";", "!:")


def read_substation(name: str, text: str, captions: Captions, *, markup: bool) -> Parsed:
    """Rows of a SubStation Alpha file, in the order of their times.

    Args:
        markup: as of ``rows_of``.

    Raises:
        InputError: malformed, or an event that pysubs2 leaves out.
    """
    import pysubs2

    _check_lines(name, text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and layers, which are of no use here
            file = pysubs2.SSAFile.from_string(text, format_="ass")
    except (ValueError, IndexError, pysubs2.exceptions.Pysubs2Error) as error:
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
        shown_text = _shown(event.text, number, dropped)
        # an effect is made of several layers with the same words
        layer = (event.start, event.end, shown_text)
        if event.is_comment or layer in shown:
            reason = COMMENTS if event.is_comment else REPEATS
            dropped.append(Dropped(reason, shown_text, number))
            continue
        shown.add(layer)
        lines = tuple(shown_text.split("\n"))
        cues.append(Cue(number, event.start / 1000, event.end / 1000, lines, event.name.strip()))
    parsed = rows_of(cues, captions, markup=markup)
    parsed.dropped = dropped + parsed.dropped
    return parsed


def _shown(text: str, number: int, dropped: list[Dropped]) -> str:
    """An event's words; drawings, and braces that hold no override tag, are dropped."""
    from pysubs2.formats.substation import parse_tags

    for brace in re.findall(r"\{([^{}\\]*)\}", text):
        dropped.append(Dropped(COMMENTS, brace, number))
    parts = []
    for fragment, style in parse_tags(text):
        if style.drawing:
            dropped.append(Dropped(DRAWINGS, fragment, number))
        else:
            parts.append(fragment)
    return re.sub(r"\\[Nn]", "\n", "".join(parts)).replace("\\h", " ").strip()


def _check_lines(name: str, text: str) -> None:
    """Raise InputError for a line below [Events] that pysubs2 would pass over or misread."""
    in_events = False
    for row, line in enumerate(text.split("\n"), 1):
        content = line.strip()
        if section := _SECTION.fullmatch(content):
            in_events = section[1].lower() == "events"
        elif in_events and content.startswith("Format:"):
            if not _FORMAT.fullmatch(content):
                raise InputError(
                    f"{name} line {row}: these columns are unusual, they must be Layer, Start, "
                    "End, Style, Name, MarginL, MarginR, MarginV, Effect, Text: save it again"
                )
        elif in_events and content.startswith(("Dialogue:", "Comment:")):
            if content.count(",") < COMMAS:
                raise InputError(f"{name} line {row}: the event has too few columns: correct it")
        elif in_events and content and not content.startswith(_KINDS):
            raise InputError(
                f"{name} line {row}: '{content[:60]}' is no event; a text is one line, "
                "with \\N for line breaks"
            )
