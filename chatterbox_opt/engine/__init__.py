"""From requests to audio: plan and build, schedule, decode, render. May import all folders below.

``chatterbox_opt.engine.Engine`` works as it did when this was one module.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "Engine":
        raise AttributeError(f"module 'chatterbox_opt.engine' has no attribute '{name}'")
    from chatterbox_opt.engine.engine import Engine

    return Engine
