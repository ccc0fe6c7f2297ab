"""Chatterbox text-to-speech, fast and exact.

    from chatterbox_opt import Engine, Sampling, Voice

Importing this package imports neither torch nor numpy; a public name's module is imported when the
name is first used. ``Engine``, ``RequestHandle``, ``Voice`` and the providers import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatterbox_opt.version import __version__ as __version__

if TYPE_CHECKING:
    from chatterbox_opt.checkpoints.weight_cache import WeightCache
    from chatterbox_opt.config.hop_schedule import HopSchedule
    from chatterbox_opt.config.plan import Plan
    from chatterbox_opt.engine.conversion.request import Conversion
    from chatterbox_opt.engine.engine import Engine
    from chatterbox_opt.engine.quality import Guard
    from chatterbox_opt.engine.serving.handle import RequestHandle
    from chatterbox_opt.errors import (
        ChatterboxOptError,
        DeviceError,
        InputError,
        NumericsError,
        OutputError,
        ProfileError,
        QueueFullError,
        RequestCancelledError,
        SilenceError,
        TextError,
        VoiceError,
        WeightsError,
        WorkerError,
    )
    from chatterbox_opt.provider import OptimizedChatterboxProvider, RealChatterboxProvider
    from chatterbox_opt.request import Audio, Metrics, Piece, Progress, Request, Result
    from chatterbox_opt.sampling import Sampling
    from chatterbox_opt.script.cast import Cast
    from chatterbox_opt.script.lexicon import Lexicon
    from chatterbox_opt.voice import Voice
    from chatterbox_opt.voices.store import VoiceStore
    from chatterbox_opt.words.word import Word

__all__ = [
    "Audio",
    "Cast",
    "ChatterboxOptError",
    "Conversion",
    "DeviceError",
    "Engine",
    "Guard",
    "HopSchedule",
    "InputError",
    "Lexicon",
    "Metrics",
    "NumericsError",
    "OptimizedChatterboxProvider",
    "OutputError",
    "Piece",
    "Plan",
    "ProfileError",
    "Progress",
    "QueueFullError",
    "RealChatterboxProvider",
    "Request",
    "RequestCancelledError",
    "RequestHandle",
    "Result",
    "Sampling",
    "SilenceError",
    "TextError",
    "Voice",
    "VoiceError",
    "VoiceStore",
    "WeightCache",
    "WeightsError",
    "Word",
    "WorkerError",
]

_MODULE_OF = {  # public name -> module that defines it; the errors are in ``errors``
    "Audio": "request",
    "Cast": "script.cast",
    "Conversion": "engine.conversion.request",
    "Engine": "engine.engine",
    "Guard": "engine.quality",
    "HopSchedule": "config.hop_schedule",
    "Lexicon": "script.lexicon",
    "Metrics": "request",
    "OptimizedChatterboxProvider": "provider",
    "Piece": "request",
    "Plan": "config.plan",
    "Progress": "request",
    "RealChatterboxProvider": "provider",
    "Request": "request",
    "RequestHandle": "engine.serving.handle",
    "Result": "request",
    "Sampling": "sampling",
    "Voice": "voice",
    "VoiceStore": "voices.store",
    "WeightCache": "checkpoints.weight_cache",
    "Word": "words.word",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'chatterbox_opt' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"chatterbox_opt.{_MODULE_OF.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
