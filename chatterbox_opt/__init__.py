"""Chatterbox text-to-speech, fast and exact.

    from chatterbox_opt import Engine, Sampling, Voice

Importing this package imports no torch; naming ``Engine`` or ``Voice`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine
    from chatterbox_opt.request import Audio, Request, Result
    from chatterbox_opt.sampling import Sampling
    from chatterbox_opt.voice import Voice

__version__ = "0.1.0"
__all__ = ["Audio", "Engine", "Request", "Result", "Sampling", "Voice"]

_HOMES = {
    "Audio": "request",
    "Engine": "engine.engine",
    "Request": "request",
    "Result": "request",
    "Sampling": "sampling",
    "Voice": "voice",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chatterbox_opt' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"chatterbox_opt.{_HOMES[name]}"), name)
