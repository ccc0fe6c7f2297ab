"""Silences what only the authors of our dependencies need to see.

Responsible for their warnings and log levels. Not responsible for our own
(cli/terminal/console.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = threading.Lock()  # of file descriptor 2: nested replacements would restore a wrong one


def silence_dependencies() -> None:
    """Hide deprecation warnings and the hub's retries; the last error still reaches the user."""
    warnings.simplefilter("ignore")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Discard what C libraries write to file descriptor 2 while the block runs.

    Of the whole process, one thread at a time, so the block should be short.
    """
    with _STDERR, contextlib.ExitStack() as stack:
        try:
            saved = os.dup(2)
        except OSError:  # standard error is closed
            yield
            return
        stack.callback(os.close, saved)
        stack.callback(os.dup2, saved, 2)
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
