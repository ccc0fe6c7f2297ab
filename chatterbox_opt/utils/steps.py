"""Announces steps that somebody waits for: importing, loading, compiling.

Responsible for the logger that announcements go to. Not responsible for showing them
(cli/terminal/console.py): without a handler for ``LOGGER`` they go nowhere.
"""

from __future__ import annotations

import logging

LOGGER = "chatterbox_opt.steps"


def announce(step: str, *, rare: bool = False) -> None:
    """Announce what is done next, if it can take longer than a second.

    Args:
        step: for example "loading the model"; "" if what follows shows its own progress.
        rare: it takes many seconds, and later starts do not need it.
    """
    logging.getLogger(LOGGER).log(logging.INFO if rare else logging.DEBUG, step)
