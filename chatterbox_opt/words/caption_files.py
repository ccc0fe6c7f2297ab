"""Caption files: .srt, .vtt and .json.

Responsible for their formats and for writing them. Not responsible for what is shown at once
(cues.py). Imports neither torch nor numpy.

    .srt    SubRip: cues
    .vtt    WebVTT: cues, with the time at which each word begins
    .json   a list with an object for each word: text, start, end, chunk
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.words.cues import CaptionCue, cues_of
from chatterbox_opt.words.word import Word

FORMATS = (".srt", ".vtt", ".json")


def check_target(path: str) -> None:
    """Check that captions can be written to a file, before minutes of work.

    Raises:
        InputError: not one of ``FORMATS``, or the file cannot be written.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise InputError(f"'{path}' is no caption file; use {', '.join(FORMATS)}")
    audio_files.check_writable(path)


def write_captions(
    path: str, words: Sequence[Word], language: str | None = None, *, sweep: bool = True
) -> None:
    """Write a file, completely or not at all; an existing one is replaced if it is another.

    A pipe or a device is written to, as by ``audio.files.writer``.

    Args:
        path: its extension is the format.
        words: in seconds of the whole.
        language: of the text, see ``cues_of``.
        sweep: as in ``atomic_write``.

    Raises:
        OutputError: it cannot be written.
        BrokenPipeError: the reader of a pipe has gone.
    """
    content = _WRITERS[Path(path).suffix.lower()](words, language).encode("utf-8")
    if audio_files.is_stream(path):
        with audio_files.open_stream(path) as stream:
            audio_files.send(stream, content, path)
        return
    target = audio_files.link_target(path)
    try:
        if target.is_file() and target.read_bytes() == content:
            return
        with atomic_write(target, sweep=sweep) as part:
            part.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"could not write '{path}' ({error.strerror}): check the free space and the permissions"
        ) from error


def to_json(words: Sequence[Word], language: str | None = None) -> str:  # noqa: ARG001
    """The words, a line each."""
    lines = (json.dumps(asdict(word), ensure_ascii=False) for word in words)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def to_srt(words: Sequence[Word], language: str | None = None) -> str:
    """Cues with numbers. SubRip has no escapes; an arrow would be read as a timing."""
    parts = [
        f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n"
        + "\n".join(_text(line).replace("-->", "→") for line in cue.lines)
        for number, cue in enumerate(cues_of(words, language), 1)
    ]
    return "\n\n".join(parts) + "\n"


def to_vtt(words: Sequence[Word], language: str | None = None) -> str:
    """Cues in which each word but the first has the time at which it begins."""
    parts = [
        f"{clock(cue.start)} --> {clock(cue.end)}\n" + _timed_lines(cue)
        for cue in cues_of(words, language)
    ]
    return "\n\n".join(["WEBVTT", *parts]) + "\n"


def _timed_lines(cue: CaptionCue) -> str:
    """Words with times in angle brackets, which have to rise and lie within the cue."""
    lines, last = [], cue.start
    for line in cue.lines:
        shown = []
        for word in line:
            text = word.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            inside = clock(last) < clock(word.start) < clock(cue.end)
            shown.append(f"<{clock(word.start)}>{text}" if inside else text)
            last = max(last, word.start)
        lines.append(" ".join(shown))
    return "\n".join(lines)


def _text(line: Sequence[Word]) -> str:
    return " ".join(word.text for word in line)


def clock(seconds: float, mark: str = ".") -> str:
    """hours:minutes:seconds, then a mark and milliseconds; 100 hours have three digits."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{mark}{milliseconds:03}"


_WRITERS: dict[str, Callable[[Sequence[Word], str | None], str]] = {
    ".srt": to_srt,
    ".vtt": to_vtt,
    ".json": to_json,
}
