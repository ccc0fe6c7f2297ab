"""Imports librosa without numba's cache in ``NUMBA_CACHE_DIR``.

Responsible for where the compiled functions of librosa come from. Not responsible for the CPU
kernels (kernels/cpu/compile_cache.py), whose files in that directory are verified.

librosa's are numba's own files: they are machine code in pickles without a digest. A damaged one
ends the process, and one of another user's would run. So they are kept where numba keeps them by
default: with the installed package, or, if that is read-only, in the user's cache directory.
"""

from __future__ import annotations

import threading
from types import ModuleType

_LOCK = threading.Lock()  # while numba's setting is replaced; engines may load in threads


def import_librosa() -> ModuleType:
    """librosa, with the modules that upstream's encoders use; to be called before theirs."""
    from numba.core import config

    with _LOCK:
        directory, config.CACHE_DIR = config.CACHE_DIR, ""
        try:
            # librosa imports its parts when they are used; numba looks at the setting at that time
            import librosa
            import librosa.effects
            import librosa.filters
        finally:
            config.CACHE_DIR = directory
    return librosa
