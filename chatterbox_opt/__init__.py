"""Chatterbox text-to-speech, fast and exact.

    from chatterbox_opt import Engine, Sampling, Voice

Importing this package does not import torch; the first use of ``Engine``,
``Guard``, ``RequestHandle`` or ``Voice`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine
    from chatterbox_opt.engine.handle import RequestHandle
    from chatterbox_opt.engine.quality import Guard
    from chatterbox_opt.errors import ChatterboxOptError
    from chatterbox_opt.request import Audio, Metrics, Piece, Progress, Request, Result
    from chatterbox_opt.sampling import Sampling
    from chatterbox_opt.voice import Voice

__version__ = "0.1.0"
__all__ = [
    "Audio",
    "ChatterboxOptError",
    "Engine",
    "Guard",
    "Metrics",
    "Piece",
    "Progress",
    "Request",
    "RequestHandle",
    "Result",
    "Sampling",
    "Voice",
]

_MODULE_OF = {  # public name -> module that defines it, imported on first use
    "Audio": "request",
    "ChatterboxOptError": "errors",
    "Engine": "engine.engine",
    "Guard": "engine.quality",
    "Metrics": "request",
    "Piece": "request",
    "Progress": "request",
    "Request": "request",
    "RequestHandle": "engine.handle",
    "Result": "request",
    "Sampling": "sampling",
    "Voice": "voice",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'chatterbox_opt' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"chatterbox_opt.{_MODULE_OF[name]}"), name)
