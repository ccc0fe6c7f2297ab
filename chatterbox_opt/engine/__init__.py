"""From requests to audio: plan and build, schedule, decode, render.

May import all packages below it; not ``bench``, ``batch`` or ``cli``. ``Engine`` can be imported
from here; it is resolved on access, because its module imports torch.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "Engine":
        raise AttributeError(f"module 'chatterbox_opt.engine' has no attribute '{name}'")
    from chatterbox_opt.engine.engine import Engine

    return Engine
