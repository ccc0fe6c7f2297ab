"""Modules built without initial values. Knows torch's initialisers, and nothing of what is built.

Every value is read from a file a moment later. Drawing them first takes 2 s for upstream's flow, is
a draw from the global generator that is none of ours, and on the meta device imports sympy (0.3 s).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode


class _SkipInit(TorchFunctionMode):
    """Leave new parameters as they are."""

    NAMES = frozenset(
        ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_")
    )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in self.NAMES:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def skip_init() -> Iterator[None]:
    """Build modules without drawing initial values."""
    with _SkipInit():
        yield
