"""Imports single files of chatterbox-tts and PerTh without running the packages' ``__init__``.

Responsible for finding the installed packages and avoiding their heavy imports. Not responsible for
what the files define.

``import chatterbox`` imports every model of the family, and with them transformers, diffusers,
librosa and PerTh: six seconds. The files that are used here need none of that. They are imported
from the same installed package under a private name whose packages are empty modules, so that no
``__init__`` runs; a normal ``import chatterbox`` elsewhere is not affected.

One of them, the vocoder, needs a window function of scipy.signal, which takes 0.6 s to import. For
that file only, ``__import__`` is replaced so that it gets ``hann_window`` instead.
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

PRIVATE = "_single_files_of_"  # prefix of the private package names
UPSTREAM = "chatterbox"
REPLACED = {"models.s3gen.hifigan": "scipy.signal"}  # file -> import that gets ``hann_window``


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
    """Folder of an installed package, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) if folders else None


def import_layers(package: Path, name: str) -> ModuleType:
    """Import a module below a package's folder; its parent packages are empty modules."""
    private, path = f"{PRIVATE}{package.name}", package
    for part in ["", *name.split(".")[:-1]]:
        private, path = (f"{private}.{part}", path / part) if part else (private, path)
        if private not in sys.modules:
            empty = ModuleType(private)
            empty.__path__ = [str(path)]
            sys.modules[private] = empty
    full = f"{PRIVATE}{package.name}.{name}"
    if name in REPLACED and full not in sys.modules:
        _import_with_window(full, REPLACED[name])
    return importlib.import_module(full)


def hann_window(name: str, length: int, *, fftbins: bool) -> npt.NDArray[np.float64]:
    """Same values as ``scipy.signal.get_window("hann", length, fftbins=True)``: float64 [length].

    Raises:
        ValueError: another window was requested.
    """
    if name != "hann" or not fftbins:
        raise ValueError(f"only the periodic Hann window is supported here, not {name}")
    return 0.5 + 0.5 * np.cos(np.linspace(-np.pi, np.pi, length + 1)[:-1])


def _import_with_window(full: str, replaced: str) -> None:
    """Import a module whose ``from replaced import get_window`` gets ``hann_window``."""
    replacement: Any = ModuleType(replaced)
    replacement.get_window = hann_window

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        names: tuple[str, ...] = (),
        level: int = 0,
    ) -> ModuleType:
        if name == replaced and level == 0:
            return replacement
        return builtins.__import__(name, globals, locals, names, level)

    spec = importlib.util.find_spec(full)
    if spec is None or spec.loader is None:
        return  # the normal import raises the error
    module = importlib.util.module_from_spec(spec)
    # import statements call ``__import__`` from their module's ``__builtins__``
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_}
    spec.loader.exec_module(module)
    sys.modules[full] = module
