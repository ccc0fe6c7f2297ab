"""Lazy mapping feature -> why it is unsupported, evaluated on lookup.

Responsible for calling each check once, when its feature is looked up, because a check may compile
a kernel. Not responsible for the checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping


class LazyReasons(Mapping[str, str]):
    """Reasons by feature; supported features are not in the mapping."""

    def __init__(self, probes: Mapping[str, Callable[[], str]]) -> None:
        """Create the mapping.

        Args:
            probes: feature -> function that returns the reason, or "" if it is supported; each is
                called at most once.
        """
        self._probes = {name: functools.cache(probe) for name, probe in probes.items()}

    def __getitem__(self, name: str) -> str:
        if reason := self._probes[name]():
            return reason
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._probes if name in self)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __reduce__(self) -> tuple[type, tuple[dict[str, str]]]:
        """Pickle as a plain dict: all probes are run in this process."""
        return dict, (dict(self),)
