"""Silences what only the authors of our dependencies need to see.

Responsible for their warnings and log levels. Not responsible for our own (cli/console.py).
"""

from __future__ import annotations

import logging
import warnings


def silence_dependencies() -> None:
    """Hide deprecation warnings and the hub's retries; the last error still reaches the user."""
    warnings.simplefilter("ignore")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
