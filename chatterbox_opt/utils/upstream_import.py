"""Other packages' layer files, imported without the packages around them.

Knows where the installed chatterbox-tts and PerTh lie, and what their files import in vain. Knows
nothing of what is in them.

``import chatterbox`` imports every model of the family, and with them transformers, diffusers,
librosa and PerTh: six seconds before the first word. The files that we drive need none of that.
They are imported, from the same installed package, below a private name whose packages are empty,
so that the ``__init__`` files do not run; ``import chatterbox`` elsewhere is not touched.

One of them, the vocoder, wants a window function of scipy.signal, which takes 0.6 s to import.
That file alone is given ``hann_window`` instead: its import statements go through a function of ours.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from chatterbox_opt.errors import ChatterboxOptError

PRIVATE = "_lean_"
UPSTREAM = "chatterbox"
HEAVY = {"models.s3gen.hifigan": "scipy.signal"}  # file -> what it needs a window of


def import_upstream(name: str) -> ModuleType:
    """Import a file of upstream, such as ``models.s3gen.hifigan``.

    Raises:
        ChatterboxOptError: chatterbox-tts is not installed.
    """
    path = package_directory(UPSTREAM)
    if path is None:
        raise ChatterboxOptError(
            "chatterbox-tts is not installed: pip install chatterbox-tts==0.1.7"
        )
    return import_layers(path, name)


def package_directory(package: str) -> Path | None:
    """Folder of an installed package, found without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) if folders else None


def import_layers(package: Path, name: str) -> ModuleType:
    """Import a file below a package's folder; packages on the way to it stay empty."""
    private, path = f"{PRIVATE}{package.name}", package
    for part in ["", *name.split(".")[:-1]]:
        private, path = (f"{private}.{part}", path / part) if part else (private, path)
        if private not in sys.modules:
            empty = ModuleType(private)
            empty.__path__ = [str(path)]
            sys.modules[private] = empty
    full = f"{PRIVATE}{package.name}.{name}"
    if name in HEAVY and full not in sys.modules:
        _import_with_window(full, HEAVY[name])
    return importlib.import_module(full)


def hann_window(name: str, length: int, *, fftbins: bool) -> npt.NDArray[np.float64]:
    """What ``scipy.signal.get_window("hann", length, fftbins=True)`` gives: float64 [length].

    Raises:
        ValueError: another window is asked for.
    """
    if name != "hann" or not fftbins:
        raise ValueError(f"only the periodic Hann window is known here, not {name}")
    return 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, length + 1)[:-1])


def _import_with_window(full: str, heavy: str) -> None:
    """Import a file whose ``from heavy import get_window`` is answered with ``hann_window``."""
    stand_in: Any = ModuleType(heavy)
    stand_in.get_window = hann_window

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        names: tuple[str, ...] = (),
        level: int = 0,
    ) -> ModuleType:
        if name == heavy and level == 0:
            return stand_in
        return builtins.__import__(name, globals, locals, names, level)

    spec = importlib.util.find_spec(full)
    if spec is None or spec.loader is None:
        return  # the plain import says what is missing
    module = importlib.util.module_from_spec(spec)
    # an import statement calls the __import__ of its own module's builtins
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_}
    spec.loader.exec_module(module)
    sys.modules[full] = module
