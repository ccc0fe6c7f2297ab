"""Displays a batch: a progress bar on a terminal, lines elsewhere, JSON events for scripts.

Responsible for Rich, the terminal and standard output. Not responsible for how the work is done.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from chatterbox_opt.batch.joining.mastering import LOUDNESS, PEAK, ROOM_TONE
from chatterbox_opt.cli.terminal.console import Reporter

if TYPE_CHECKING:
    from chatterbox_opt.batch.joining.join import Joined
    from chatterbox_opt.batch.manifest import Entry
    from chatterbox_opt.batch.runner import Event, Summary

EVERY = 1.0  # minimum seconds between plain lines; failures are always printed
LISTED = 50  # maximum number of failures listed at the end; the manifest has all


@contextmanager
def display(reporter: Reporter, *, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """Yield a function that displays events, while the block runs."""
    displays: list[Callable[[Event], None]] = [_print_json] if as_json else []
    if reporter.quiet:
        yield _each(displays)
    elif not reporter.is_terminal:
        yield _each([*displays, _Lines(reporter)])
    else:
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
        )
        with reporter.bars(*columns) as bars:
            yield _each([*displays, _Bar(reporter, bars)])


def _each(displays: list[Callable[[Event], None]]) -> Callable[[Event], None]:
    def forward(event: Event) -> None:
        for display_event in displays:
            display_event(event)

    return forward


def _print_json(event: Event) -> None:
    print(json.dumps(as_object(event)), flush=True)


def as_object(event: Event) -> dict[str, Any]:
    """An event as a JSON object: ``event``, the counts, and for an item its manifest entry."""
    values = dataclasses.asdict(event)
    entry = values.pop("entry") or {}
    values = {"event": values.pop("kind"), **values, "remaining": _remaining(event)}
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
    return rounded | ({"item": entry} if entry else {})


class _Lines:
    """Prints a line for an item, at most one in ``EVERY`` seconds."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._last = float("-inf")

    def __call__(self, event: Event) -> None:
        entry, now = event.entry, time.monotonic()
        if event.kind == "begin" and event.skipped:
            self._reporter.status(f"{event.skipped} of {event.total} are done already")
        if entry is None:
            return
        if entry.error or entry.faults or now - self._last >= EVERY or not _left(event):
            self._last = now
            position = f"[{event.skipped + event.done + event.failed}/{event.total}]"
            self._reporter.status(f"{position} {_line(entry)} · {_rates(event)}")


class _Bar:
    """One bar for the whole job, with failures printed above it."""

    def __init__(self, reporter: Reporter, bars: Progress) -> None:
        self._reporter, self._bars = reporter, bars
        self._task = bars.add_task("loading the model", total=None)

    def __call__(self, event: Event) -> None:
        completed = event.skipped + event.done + event.failed
        self._bars.update(
            self._task, total=event.total, completed=completed, description=_rates(event)
        )
        if event.entry is not None and (event.entry.error or event.entry.faults):
            self._reporter.status(_line(event.entry))


def _line(entry: Entry) -> str:
    if entry.error:
        return f"{entry.id} failed: {entry.error}"
    doubt = f" ({'; '.join(entry.faults)})" if entry.faults else ""
    return f"{entry.file} {entry.duration:.1f}s{doubt}"


def _left(event: Event) -> int:
    return event.total - event.skipped - event.done - event.failed


def _remaining(event: Event) -> float | None:
    """Estimated seconds until the end, from the characters that are left."""
    if not 0 < event.share <= 1:
        return None
    return event.elapsed * (1 - event.share) / event.share


def _rates(event: Event) -> str:
    elapsed = max(event.elapsed, 1e-9)
    finished = event.done + event.failed
    parts = [f"{finished / elapsed:.2f} items/s", f"{event.audio / elapsed:.2f}x real time"]
    if (remaining := _remaining(event)) is not None and _left(event):
        parts.append(f"{_clock(remaining)} left")
    if event.failed:
        parts.append(f"{event.failed} failed")
    return " · ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def report(reporter: Reporter, summary: Summary, rows: dict[str, int], seconds: float) -> None:
    """Print failures with their reasons, then a summary table.

    Args:
        rows: id -> row of the job file.
        seconds: duration of the run.
    """
    failed, doubtful = summary.failed(), summary.with_faults()
    for entry in failed[:LISTED]:
        reporter.warn(f"row {rows[entry.id]} (id {entry.id}) failed: {entry.error}")
    if len(failed) > LISTED:
        reporter.warn(f"{len(failed) - LISTED} more failed: see the manifest")
    for entry in doubtful[:LISTED]:
        reporter.status(f"doubtful: {_line(entry)}")
    done = [e for e in summary.entries.values() if not e.error]
    seconds_of_audio = sum(entry.duration for entry in done)
    cells = [
        ("done", str(len(done) - summary.skipped)),
        ("done before", str(summary.skipped)),
        ("failed", str(len(failed))),
        ("doubtful", str(len(doubtful))),
        ("not reached", str(summary.left)),
        ("audio", _clock(seconds_of_audio)),
        ("time", _clock(seconds)),
    ]
    reporter.table([(name, value) for name, value in cells if value != "0" or name == "failed"])


def report_joined(reporter: Reporter, joined: Joined, target: str) -> None:
    """Print what was joined; what a mastered file has, as a warning if it misses its targets."""
    chapters = f", {joined.chapters} chapters" if joined.chapters else ""
    reporter.status(f"joined: {joined.seconds:.1f}s{chapters} -> {target}")
    if (measured := joined.measured) is None:
        return
    show = reporter.warn if measured.missed else reporter.status
    show(
        f"mastered: {measured.loudness:.1f} LUFS (target {LOUDNESS:g}), peak {measured.peak:.1f} "
        f"dBFS (at most {PEAK:g}), room tone {ROOM_TONE:g} dBFS"
    )
