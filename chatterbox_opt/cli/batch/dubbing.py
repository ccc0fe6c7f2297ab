"""What ``batch --timed`` prints: how the speech of each cue fits.

Responsible for the table and for the JSON events. Not responsible for the fitting
(batch/joining/timeline.py).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from chatterbox_opt.batch.joining.timeline import CueFit, Fit
from chatterbox_opt.cli.terminal import tables
from chatterbox_opt.cli.terminal.console import Reporter
from chatterbox_opt.words.caption_files import clock

LISTED = 50  # cues in the table; with -v all
HEADINGS = ("cue", "start", "length", "speech", "rate", "fit")


def report(reporter: Reporter, fits: Sequence[CueFit], *, as_json: bool) -> None:
    """Print a table of the cues, of a long film those that do not fit as they are; then counts.

    Args:
        as_json: also print an event for each cue, in the order of their starts.
    """
    if as_json:
        for fit in fits:
            print(json.dumps({"event": "cue", **dataclasses.asdict(fit)}))
    shown = fits
    if len(fits) > LISTED and not reporter.verbose:
        shown = [fit for fit in fits if fit.fit is not Fit.NATURAL]
    listed = shown if reporter.verbose else shown[:LISTED]
    for line in tables.lines(HEADINGS, [_row(fit) for fit in listed], None):
        reporter.status(line)
    if len(listed) < len(shown):
        reporter.status(f"{len(shown) - len(listed)} more cues do not fit as they are: see -v")
    counts = {kind: sum(fit.fit is kind for fit in fits) for kind in Fit}
    told = [f"{count} {kind.value}" for kind, count in counts.items() if count]
    reporter.status(f"{len(fits)} cues: {', '.join(told)}")


def _row(fit: CueFit) -> list[str]:
    more = f", {fit.over:.2f} s" if fit.fit in (Fit.GAP, Fit.OVERLAP) else ""
    more = f", {fit.lost:.2f} s lost" if fit.fit is Fit.CUT else more
    length = f"{max(fit.end - fit.start, 0):.2f} s"
    return [
        fit.id,
        clock(fit.start),
        length,
        f"{fit.seconds:.2f} s",
        f"{fit.rate:.2f}",
        f"{fit.fit.value}{more}",
    ]
