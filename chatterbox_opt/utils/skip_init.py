"""Construction of modules without random initialization, because weights are loaded afterwards.

Responsible for replacing the initializers while a module is constructed. Not responsible for
loading weights (checkpoints/reader.py).

Initialization takes 2 s for upstream's flow, advances the global generator, and imports sympy on
the meta device (0.3 s).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode


class _SkipInit(TorchFunctionMode):
    """Turns torch's random initializers into no-ops."""

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
    """Leave parameters of modules that are constructed in the block uninitialized."""
    with _SkipInit():
        yield
