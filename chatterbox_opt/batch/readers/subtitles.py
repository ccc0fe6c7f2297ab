"""Cues of .srt and .vtt files, with the faults that people and programs put into them.

Responsible for timings and for which lines belong to which cue. Not responsible for what of a cue
is spoken (captions.py).

The file is cut at its timings, not at empty lines: all lines up to the next timing belong to a cue,
except the number or name of the next one. That keeps cues without an empty line between them and
cues with one inside. pysubs2, which reads .ass for us, does the same, but takes a timing it cannot
read for text of the cue before, removes a last line that is a number, and reads notes of WebVTT
aloud; here an unreadable timing is an error, and every line is text or is counted as dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from chatterbox_opt.batch.readers.captions import Captions, Cue, rows_of
from chatterbox_opt.batch.readers.rows import Dropped, Parsed
from chatterbox_opt.errors import InputError

NOTES, NAMES, HEADERS = "notes and styles", "names of cues", "lines before the first cue"
_CLOCK = r"\d{1,9} ?: ?\d{1,9}(?: ?: ?\d{1,9})?(?: ?[.,:] ?\d{1,9})?"
_TIMING = re.compile(
    rf"[^\w<]{{0,4}}(?P<start>{_CLOCK})(?P<between>(?:\W|&gt;|\bto\b){{1,16}}?)(?P<end>{_CLOCK})"
    r"(?P<rest>(?:\s.*)?)"
)
_ARROW = re.compile(r">|›|»|&gt;|→|⟶|➔|➡|⇒|[-–—−]{2}")
_SETTINGS = re.compile(
    r"(?:\s+(?:vertical|line|position|size|align|region|[XY][12]):[^\s:]+)*\s*", re.IGNORECASE
)
_NUMBER = re.compile(r"^\s*\W*(\d+)\W*$")
_BLOCK = re.compile(r"^(NOTE|STYLE|REGION|WEBVTT)(\s|$)")
_Lines: TypeAlias = list[tuple[int, str]]  # with their rows


@dataclass(slots=True)
class _Draft:
    """A cue while its lines are collected."""

    start: float
    end: float
    lines: _Lines = field(default_factory=list)


def read_subtitles(name: str, text: str, captions: Captions, *, web: bool, markup: bool) -> Parsed:
    """Rows of a .srt, or with ``web`` of a .vtt.

    Args:
        markup: as of ``rows_of``.

    Raises:
        InputError: a timing that cannot be read, or none at all; with its line.
    """
    found = Parsed()
    head, drafts = _cut_at_timings(name, _without_blocks(text, found.dropped, web=web))
    found.dropped += [Dropped(HEADERS, line, row) for row, line in head if not _NUMBER.match(line)]
    if not drafts and any(line.strip() for _, line in head):
        raise InputError(
            f"{name} has no timing: write 00:00:01,000 --> 00:00:02,000 above each text"
        )
    numbers = _numbers([head, *(draft.lines for draft in drafts[:-1])])
    for lines, number in zip([draft.lines for draft in drafts], numbers[1:], strict=False):
        _remove_name_of_next(lines, number, found.dropped, web=web)
    cues = [
        Cue(number, draft.start, draft.end, tuple(line for _, line in draft.lines))
        for number, draft in enumerate(drafts, 1)
    ]
    parsed = rows_of(cues, captions, markup=markup)
    parsed.dropped = found.dropped + parsed.dropped
    return parsed


def _without_blocks(text: str, dropped: list[Dropped], *, web: bool) -> Iterator[tuple[int, str]]:
    """Lines with their rows; of a WebVTT file without its header, notes and styles."""
    in_block = web and text.startswith("WEBVTT")
    after_empty = True
    for row, line in enumerate(text.split("\n"), 1):
        empty = not line.strip()
        if web and after_empty and _BLOCK.match(line):
            in_block = True
        if in_block and (empty or _timing(line)):
            in_block = False
        if in_block:
            dropped.append(Dropped(NOTES, line.removeprefix("WEBVTT"), row))
        else:
            yield row, line
        after_empty = empty


def _cut_at_timings(name: str, lines: Iterator[tuple[int, str]]) -> tuple[_Lines, list[_Draft]]:
    """The lines before the first timing, and the cues with all lines behind their timings."""
    head: _Lines = []
    drafts: list[_Draft] = []
    for row, line in lines:
        timing = _timing(line)
        if timing is None:
            if _resembles_timing(line):
                raise InputError(
                    f"{name} row {len(drafts) + 1} (line {row}): '{line.strip()[:60]}' is no "
                    "timing that can be read: write it as 00:00:01,000 --> 00:00:02,000"
                )
            (drafts[-1].lines if drafts else head).append((row, line))
            continue
        drafts.append(_Draft(_seconds(timing["start"]), _seconds(timing["end"])))
        if not _SETTINGS.fullmatch(timing["rest"]):
            drafts[-1].lines.append((row, timing["rest"]))  # words on the timing's own line
    return head, drafts


def _timing(line: str) -> re.Match[str] | None:
    """A line's timing. Without an arrow, both clocks need hours: ``9:30 - 10:15`` is text."""
    match = _TIMING.fullmatch(line)
    if match is None or _ARROW.search(match["between"]):
        return match
    return match if all(match[part].count(":") >= 2 for part in ("start", "end")) else None


def _resembles_timing(line: str) -> bool:
    """Whether a line that is no timing was meant to be one."""
    if "-->" in line and any(c.isdigit() for c in line):
        return True
    first = re.match(rf"[^\w<]{{0,4}}{_CLOCK}", line)
    rest = line[first.end() :] if first else ""
    return first is not None and (
        _ARROW.match(rest.strip()) is not None
        or first[0].count(":") >= 2
        and re.match(rf"\W+{_CLOCK}", rest) is not None
    )


def _seconds(clock: str) -> float:
    """Seconds of a clock; its last part after three others are milliseconds: ``00:00:04:500``."""
    fields = re.findall(r"\d+", clock)
    fraction = ""
    if re.search(r"[.,]", clock) or len(fields) == 4:
        fraction = fields.pop()
    seconds = 0
    for value in fields:
        seconds = 60 * seconds + int(value)
    return seconds + (int(fraction) / 10 ** len(fraction) if fraction else 0.0)


def _numbers(parts: Sequence[_Lines]) -> list[int | None]:
    """The number that each cue is expected to have, from the lines before each; None for none.

    Cues count from 1, from 0, or from where the first one begins; a wrong one in between changes
    nothing. A file has numbers if most of its timings have one directly above them.
    """
    ends = [[line for _, line in lines if line.strip()][-1:] for lines in parts]
    last = [_NUMBER.match(end[0]) if end else None for end in ends]
    if 2 * sum(match is not None for match in last) <= len(parts):
        return [None] * len(parts)
    first = next(int(match[1]) - position for position, match in enumerate(last) if match)
    return [first + position for position in range(len(parts))]


def _remove_name_of_next(
    lines: _Lines, expected: int | None, dropped: list[Dropped], *, web: bool
) -> None:
    """Remove the number or the name of the next cue, which stands directly above its timing.

    The last line of a text may be a number too: it is the next cue's if it is the one expected, or,
    in a file with numbers, if an empty line is above it. A name (WebVTT) needs the empty line.
    """
    written = [i for i, (_, line) in enumerate(lines) if line.strip()]
    if not written:
        return
    at = written[-1]
    row, last = lines[at]
    is_above = at == len(lines) - 1  # without an empty line between it and the timing
    below_empty = at > 0 and not lines[at - 1][1].strip()
    number = _NUMBER.match(last)
    if number is not None and expected is not None and int(number[1]) == expected:
        del lines[at]
    elif is_above and below_empty and (web or (number is not None and expected is not None)):
        dropped.append(Dropped(NAMES, last, row))
        del lines[at]
