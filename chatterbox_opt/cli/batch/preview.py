"""``batch --dry-run``: prints what a job would make.

Responsible for its two forms, lines for a person and JSON for a script. Not responsible for reading
the job (batch/job_file.py).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from chatterbox_opt.batch.job_file import Item, Job, Pause
from chatterbox_opt.batch.readers.rows import Dropped, words_by_reason
from chatterbox_opt.utils.printable import printable
from chatterbox_opt.words.caption_files import clock

SHOWN = 60  # characters of a text, for a person


def preview(job: Job, dropped: Iterable[Dropped], *, as_json: bool, timed: bool = False) -> None:
    """Print the items and pauses of a job in their order, then the counts.

    Args:
        dropped: what is not spoken, by the file's format and by the model.
        timed: show a person the times of cues; JSON always has them.
    """
    words = words_by_reason(dropped)
    counts = {"items": len(job.items), "pauses": len(job.pauses), "dropped": words}
    if as_json:
        for line in job.lines:
            print(json.dumps(as_object(line)))
        print(json.dumps({"kind": "counts", **counts, "notes": job.notes}))
        return
    width = max(len(printable(item.id)) for item in job.items)
    for number, line in enumerate(job.lines):
        if number and isinstance(line, Item) and line.starts_chapter:
            print()
        times = f"{clock(line.start or 0)} --> {clock(line.end or 0)}  " if timed else ""
        print(times + _as_text(line, width))
    for note in [*job.notes, summary(job, words)]:
        print(printable(note), file=sys.stderr)


def as_object(line: Item | Pause) -> dict[str, Any]:
    """A line of a job, for JSON."""
    values: dict[str, Any] = {
        "kind": "speak" if isinstance(line, Item) else "pause",
        "id": line.id,
        "text": line.text,
        "voice": line.voice if isinstance(line, Item) else None,
        "language": line.language if isinstance(line, Item) else None,
        "row": line.row,
        "start": line.start,
        "end": line.end,
    }
    if isinstance(line, Item):
        values |= {"rate": line.rate, "markup": line.markup, "voices": line.script().voices}
        return values | {"starts_chapter": line.starts_chapter, "chapter": line.chapter}
    return values | {"reason": line.reason}


def summary(job: Job, words: Mapping[str, int]) -> str:
    """The counts in one line.

    Args:
        words: number of those that are not spoken, by reason.
    """
    parts = [f"{len(job.items)} items"]
    if chapters := sum(bool(item.chapter) for item in job.items):
        parts.append(f"{chapters} headings")
    if job.pauses:
        reasons = sorted({pause.reason for pause in job.pauses})
        parts.append(f"{len(job.pauses)} pauses ({', '.join(reasons)})")
    if words:
        why = ", ".join(f"{reason}: {count}" for reason, count in words.items())
        parts.append(f"{sum(words.values())} words not spoken ({why})")
    return " · ".join(parts)


def _as_text(line: Item | Pause, width: int) -> str:
    text = printable(" ".join(line.text.split()))
    shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    if isinstance(line, Pause):
        return f"{'':>{width}}  (pause: {line.reason})  {shown}"
    voices = printable(", ".join(line.script().voices) or line.voice or "")
    voice = f"  [{voices}]" if voices else ""
    language = f"  ({line.language})" if line.language else ""
    rate = f"  (rate {line.rate:g})" if line.rate != 1 else ""
    return f"{printable(line.id):>{width}}{voice}{language}{rate}  {shown}"
