"""Upstream's layer files, imported without upstream's package.

Knows where the installed chatterbox-tts lies. Knows nothing of what is in it.

``import chatterbox`` imports every model of the family, and with them transformers, diffusers,
librosa and PerTh: six seconds before the first word. The files that we drive need none of that.
They are imported, from the same installed package, below a private name whose packages are empty,
so that the ``__init__`` files do not run; ``import chatterbox`` elsewhere is not touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from chatterbox_opt.errors import ChatterboxOptError

PRIVATE = "_chatterbox_lean"


def upstream(name: str) -> ModuleType:
    """Import a file of upstream, such as ``models.s3gen.hifigan``.

    Raises:
        ChatterboxOptError: chatterbox-tts is not installed.
    """
    spec = importlib.util.find_spec("chatterbox")
    if spec is None or not spec.submodule_search_locations:
        raise ChatterboxOptError(
            "chatterbox-tts is not installed: pip install chatterbox-tts==0.1.7"
        )
    package, path = PRIVATE, Path(spec.submodule_search_locations[0])
    for part in ["", *name.split(".")[:-1]]:
        package, path = (f"{package}.{part}", path / part) if part else (package, path)
        if package not in sys.modules:
            empty = ModuleType(package)
            empty.__path__ = [str(path)]
            sys.modules[package] = empty
    return importlib.import_module(f"{PRIVATE}.{name}")
