"""What of a caption's text is spoken: markup, sound descriptions, speaker labels, repeats.

Responsible for the text inside cues. Not responsible for finding the cues (subtitles.py,
substation.py).

Only known tags and known entities are markup: ``a < b and c > d`` and ``&copy you`` are text.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chatterbox_opt.batch.readers.rows import Dropped, Parsed, Row
from chatterbox_opt.script.brackets import is_tag

SOUNDS, SPEAKERS, REPEATS = "sound descriptions", "speaker names", "repeated captions"
REPEAT_SECONDS = 0.05  # a rolling caption is shown again for 10 ms, without its new line
ROLL_SECONDS = 1.0  # without a caption, after which lines that stand again are spoken again

_TAG = re.compile(
    r"""</?\s*(?:i|b|u|s|em|strong|ruby|rt|c|span|p|div|font|v|lang|br)\s*(?:\.[\w-]+)*\s*/?>
    |<(?:v|lang)(?:\.[\w-]+)*\s+[^<>\n]*>                        # <v Anna>, <lang en>
    |<(?:font|span|p|div|c|b|i|u)(?:\s+[\w-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+))+\s*/?>
    |<(?:\d+:)?\d\d:\d\d\.\d+>                                    # when the next word is said
    |\{\\[^{}\n]*\}                                               # {\an8}, of ASS
    """,
    re.VERBOSE | re.IGNORECASE,
)
_VOICE_TAG = re.compile(r"<v(?:\.[\w-]+)*\s+([^<>\n]*)>", re.IGNORECASE)
_BREAK = re.compile(r"([A-Za-z]:\\\S*)|\\[Nnh]|<br\s*/?>", re.IGNORECASE)  # or a Windows path
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z][a-z0-9]*);", re.IGNORECASE)
_BRACKETS = re.compile(r"(?:\[(?:[^\[\]]|\[[^\[\]]*\])*\]|【[^【】]*】):?")  # [door slams], [JOHN]:
# (door slams), before all words of a line; inside a sentence, parentheses are a part of it
_PARENTHESES = re.compile(r"^(\s*(?:[-–—]\s?)?)(?:\([^()]*\)|（[^（）]*）):?", re.MULTILINE)
_SPEAKER = re.compile(
    r"^(\s*(?:[-–—]\s?)?)([^\W\d_][\w.'’# -]{1,31}?)\s?(?:\([^()]*\)|\[[^\[\]]*\])?:(?=\s|$)",
    re.MULTILINE,
)
_NOTES = re.compile(r"[♩♪♫♬]|^\s*#(?=\s)|\s#\s*$", re.MULTILINE)
_CUE = re.compile(r"^\s*>>+\s*", re.MULTILINE)  # a new speaker, in broadcast captions


class Captions(str, Enum):
    """What is spoken of a subtitle file."""

    SPEECH = "speech"  # not sound descriptions and speaker names
    NAMES = "names"  # not sound descriptions; NAME: before what somebody speaks, for a cast
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Cue:
    """A caption.

    Attributes:
        number: from 1, in the file's order.
        start, end: seconds.
        lines: as in the file.
        speaker: named apart from the text, by the file's format; "" if not.
    """

    number: int
    start: float
    end: float
    lines: tuple[str, ...]
    speaker: str = ""


def rows_of(cues: Sequence[Cue], captions: Captions, *, markup: bool) -> Parsed:
    """A row for every cue with text; what is left out is in ``dropped``.

    Args:
        markup: ``[pause:1s]`` and the like are no sound descriptions.
    """
    parsed = Parsed()
    for cue, lines in zip(cues, _without_repeats(cues, parsed.dropped), strict=True):
        if cue.speaker and captions != Captions.NAMES:
            parsed.dropped.append(Dropped(SPEAKERS, cue.speaker, cue.number))
        if not lines:
            continue
        text = "\n".join(lines)
        if captions != Captions.ALL:
            names = captions == Captions.NAMES
            text = _speech(text, cue.number, parsed.dropped, names=names, markup=markup)
        text = _NOTES.sub(" ", text)
        if captions == Captions.NAMES and text.strip():
            named = f"{cue.speaker}: {text}" if cue.speaker else text
            text = "\n".join(" ".join(line.split()) for line in named.splitlines() if line.strip())
        else:
            text = " ".join(text.split())
        pause = "" if text else "music" if _NOTES.search(" ".join(lines)) else "sound description"
        shown = text or " ".join(plain(" ".join(cue.lines)).split())
        parsed.rows.append(
            Row(cue.number, {"text": shown}, start=cue.start, end=cue.end, pause=pause)
        )
    return parsed


def plain(text: str) -> str:
    """A caption's text without markup; known entities are decoded."""
    text = _BREAK.sub(lambda match: match[1] or " ", text)
    return _ENTITY.sub(lambda match: html.unescape(match[0]), _TAG.sub("", text))


def _speech(text: str, number: int, dropped: list[Dropped], *, names: bool, markup: bool) -> str:
    """A cue's lines without sound descriptions, and without the names of who speaks.

    Args:
        markup: as of ``rows_of``.
        names: keep these names, at the beginnings of lines.
    """

    def drop_sound(match: re.Match[str]) -> str:
        if markup and is_tag(match[0]):
            return match[0]
        dropped.append(Dropped(SOUNDS, match[0].strip(), number))
        return " "

    def drop_speaker(match: re.Match[str]) -> str:
        label = match[0][len(match[1]) :]
        if names and match[2].isupper():
            if more := label[len(match[2]) : -1].strip():  # JOHN (on radio):
                dropped.append(Dropped(SOUNDS, more, number))
            return f"{match[2]}:"
        if not match[2].isupper():
            return label if names else match[0]
        dropped.append(Dropped(SPEAKERS, match[0][len(match[1]) :], number))
        return match[1]

    text = _SPEAKER.sub(drop_speaker, _CUE.sub("", text))  # first: JOHN [ON RADIO]:
    text = _PARENTHESES.sub(drop_sound, _BRACKETS.sub(drop_sound, text))
    return _SPEAKER.sub(drop_speaker, text)


def _without_repeats(cues: Sequence[Cue], dropped: list[Dropped]) -> list[list[str]]:
    """Plain, non-empty lines of each cue; a rolling caption loses the lines of the one before."""
    plains = [[shown for line in cue.lines if (shown := plain(line).strip())] for cue in cues]
    for cue in cues:
        for line in cue.lines:
            dropped += [Dropped(SPEAKERS, name, cue.number) for name in _VOICE_TAG.findall(line)]
    if not _is_rolling(cues, plains):
        repeated = _repeats(cues, plains)
        dropped += [Dropped(REPEATS, " ".join(plains[i]), cues[i].number) for i in sorted(repeated)]
        return [[] if i in repeated else lines for i, lines in enumerate(plains)]
    result = []
    last: int | None = None  # index of a cue with a text
    for i, (cue, lines) in enumerate(zip(cues, plains, strict=True)):
        overlap = 0 if last is None else _rolled(cues[last], plains[last], cue, lines)
        dropped += [Dropped(REPEATS, line, cue.number) for line in lines[:overlap]]
        result.append(lines[overlap:])
        last = i if lines else last
    return result


def _repeats(cues: Sequence[Cue], plains: Sequence[Sequence[str]]) -> set[int]:
    """Indices of cues that show again, or less of, what another one shows.

    The same words at the same time (joined segments), the same words with other markup (each word
    highlighted in its own cue), and words that appear one by one in at least three cues. All but
    the first follow without a gap: what is shown again later is spoken again.
    """
    texts = [" ".join(lines) for lines in plains]
    shown: set[tuple[float, float, str]] = set()
    found: set[int] = set()
    grown: list[int] = []
    for i, (cue, text) in enumerate(zip(cues, texts, strict=True)):
        if cue.start < cue.end and (cue.start, cue.end, text) in shown:
            found.add(i)
        shown.add((cue.start, cue.end, text))
        if not i or not text or not _follows(cues[i - 1], cue, REPEAT_SECONDS):
            continue
        is_same = text == texts[i - 1] and cue.lines != cues[i - 1].lines
        if is_same and any(_marks_a_part(shown) for shown in cues[i - 1 : i + 1]):
            found.add(i)
        same_lines = len(plains[i - 1]) == len(plains[i])
        if same_lines and text.startswith(texts[i - 1] + " "):
            grown.append(i - 1)
    runs = set(grown)
    found |= {i for i in grown if i - 1 in runs or i + 1 in runs}
    return found


def _follows(previous: Cue, cue: Cue, seconds: float) -> bool:
    """Whether a cue starts within the previous one, or at most so many seconds after it."""
    return previous.start <= cue.start <= previous.end + seconds


def _marks_a_part(cue: Cue) -> bool:
    """Whether tags are around some of the words only. Around all of them they are of another voice,
    such as italics of somebody on the telephone."""
    lines = _BREAK.sub(lambda match: match[1] or "\n", "\n".join(cue.lines))
    inside = _TAG.sub("\0", lines).strip("\0 \t\n")
    parts = [part for line in inside.split("\n") if (part := line.strip(" \t"))]
    begun = [len(part) - len(part.lstrip("\0")) for part in parts[1:]]
    ended = [len(part) - len(part.rstrip("\0")) for part in parts[:-1]]
    # the tags around all of the words may end and begin again with each line
    return begun != ended or any("\0" in part.strip("\0") for part in parts)


def _rolled(previous: Cue, before: Sequence[str], cue: Cue, lines: Sequence[str]) -> int:
    """How many of a cue's first lines are those of the previous one, which have moved up."""
    overlap = _overlap(before, lines)
    gap = REPEAT_SECONDS if overlap == len(lines) else ROLL_SECONDS
    return overlap if _follows(previous, cue, gap) else 0


def _overlap(before: Sequence[str], lines: Sequence[str]) -> int:
    """How many of the first ``lines`` are the last ones of the caption before."""
    lengths = range(min(len(before), len(lines)), 0, -1)
    return next((n for n in lengths if list(before[-n:]) == list(lines[:n])), 0)


def _is_rolling(cues: Sequence[Cue], plains: Sequence[Sequence[str]]) -> bool:
    """Whether captions move up a line at a time, so that each line is in two or three cues.

    It is seen from captions that are repeated for some milliseconds (YouTube), or from most
    captions of two lines and more beginning with the last line of the one before.
    """
    flashes = longer = rolled = 0
    pairs = zip(plains, plains[1:], cues, cues[1:], strict=False)
    for before, lines, previous, cue in pairs:
        overlap = _rolled(previous, before, cue, lines)
        is_short = 0 < cue.end - cue.start <= REPEAT_SECONDS
        flashes += is_short and 0 < overlap == len(lines)
        longer += len(lines) > 1
        rolled += 0 < overlap < len(lines)
    return flashes > 1 or (longer >= 2 and 2 * rolled > longer)
