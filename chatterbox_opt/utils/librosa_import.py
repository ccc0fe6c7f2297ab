"""Imports librosa without numba's cache in ``NUMBA_CACHE_DIR``.

Responsible for where the compiled functions of librosa come from. Not responsible for the CPU
kernels (kernels/cpu/compile_cache.py), whose files in that directory are verified.

librosa's are numba's own files: they are machine code in pickles without a digest. A damaged one
ends the process, and one of another user's would run. So they are kept where numba keeps them by
default: with the installed package, or, if that is read-only, in the user's cache directory.
"""

from __future__ import annotations

import importlib
import threading
from types import ModuleType

# the parts with compiled functions, of those that the encoders use: librosa imports a part when it
# is used, and that is when numba looks at the setting
_PARTS = (
    *("core.audio", "core.constantq", "core.notation", "core.pitch", "core.spectrum", "effects"),
    *("filters", "sequence", "util.utils"),
)
_LOCK = threading.Lock()  # while numba's setting is replaced; engines may load in threads


def import_librosa() -> ModuleType:
    """librosa, with the parts that upstream's encoders use; to be called before theirs."""
    from numba.core import config

    with _LOCK:
        directory, config.CACHE_DIR = config.CACHE_DIR, ""
        try:
            for part in _PARTS:
                importlib.import_module(f"librosa.{part}")
        finally:
            config.CACHE_DIR = directory
    return importlib.import_module("librosa")
