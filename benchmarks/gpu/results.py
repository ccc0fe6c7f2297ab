"""Figures on disk: a line of JSON each, written through to the disk as soon as it is known.

Knows the file. Knows nothing of what figures mean (bench/report.py) or of who measures them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """One figure.

    Attributes:
        stage: who measured it.
        at: seconds since that stage began.
        what: the kind of figure, see kinds.py.
        value: plain data; seconds, unless a key says another unit.
    """

    stage: str
    at: float
    what: str
    value: Any


class Results:
    """The end of the file, for one stage. Several processes may write to one file."""

    def __init__(self, path: Path, stage: str) -> None:
        """Open the file for appending; a line that a killed process left open is ended first.

        Raises:
            OSError: it cannot be written.
        """
        self._path, self._stage, self._started = path, stage, time.monotonic()
        if path.exists() and not _ends_with_a_line(path):
            self._append(b"\n")

    def put(self, what: str, value: Any) -> None:
        """Write one line; when this returns it is on the disk.

        Args:
            value: plain data; what JSON lacks is written as text, what is no number as null.

        Raises:
            OSError: the disk is full.
        """
        at = round(time.monotonic() - self._started, 1)
        line = {"stage": self._stage, "at": at, "what": what, "value": _finite(value)}
        self._append((json.dumps(line, default=str) + "\n").encode())
        print(
            f"[{self._stage} {at:6.1f}] {what}: {json.dumps(value, default=str)[:700]}", flush=True
        )

    def _append(self, text: bytes) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(text)
            os.fsync(file.fileno())


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def read(path: Path) -> list[Line]:
    """The lines of a file, in their order; a broken one, of a process that was killed, is left out.

    Raises:
        OSError: it cannot be read.
    """
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            one = json.loads(text)
            found.append(Line(one["stage"], one["at"], one["what"], one["value"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
