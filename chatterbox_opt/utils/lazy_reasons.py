"""What a machine lacks, each thing looked for when it is asked for: looking may compile.

Knows names and reasons. Knows nothing of machines.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping


class LazyReasons(Mapping[str, str]):
    """Reasons by name; a name is missing where nothing is lacking."""

    def __init__(self, reasons: Mapping[str, Callable[[], str]]) -> None:
        """Take what finds each reason, or "" where nothing is lacking."""
        self._reasons = {name: functools.cache(reason) for name, reason in reasons.items()}

    def __getitem__(self, name: str) -> str:
        if reason := self._reasons[name]():
            return reason
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._reasons if name in self)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __reduce__(self) -> tuple[type, tuple[dict[str, str]]]:
        """To another process goes what was found in this one, all of it."""
        return dict, (dict(self),)
