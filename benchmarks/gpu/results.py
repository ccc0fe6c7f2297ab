"""Figures on disk: one line of JSON each, flushed to disk immediately (fsync).

Responsible for the file. Not responsible for the meaning of figures (report.py) or for measuring
them.
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
        stage: that measured it.
        at: seconds since that stage started.
        what: the kind of figure, see kinds.py.
        value: plain data; times are in seconds, unless the key names another unit.
    """

    stage: str
    at: float
    what: str
    value: Any


class Results:
    """Appends one stage's lines to the file, to which several processes may write."""

    def __init__(self, path: Path, stage: str) -> None:
        """Open the file for appending; an incomplete line of a killed process is terminated first.

        Raises:
            OSError: it is not writable.
        """
        self._path, self._stage, self._started = path, stage, time.monotonic()
        if path.exists() and not _ends_with_a_line(path):
            self._append(b"\n")

    def put(self, what: str, value: Any) -> None:
        """Write one line; it is on disk when this returns.

        Args:
            value: plain data; other types are written as text, NaN/Inf as null.

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
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read(path: Path) -> list[Line]:
    """The lines of a file, in order; incomplete ones, of killed processes, are skipped.

    Raises:
        OSError: it is not readable.
    """
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(text)
            lines.append(Line(value["stage"], value["at"], value["what"], value["value"]))
        except (ValueError, KeyError, TypeError):
            continue
    return lines
