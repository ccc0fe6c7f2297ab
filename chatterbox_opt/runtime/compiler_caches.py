"""Where Triton and inductor keep what they compile: only where no other user can write.

Responsible for the environment variables that both read. Not responsible for their files
(kernels/cuda/compile_cache.py). By default inductor uses a directory of a predictable name in the
system's temporary directory, and what is loaded from there is machine code.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs

from chatterbox_opt.utils import cache_directory

DIRECTORIES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
TRITON_HOME = "TRITON_HOME"  # holds Triton's cache unless TRITON_CACHE_DIR is set
MANAGER = "TRITON_CACHE_MANAGER"
OUR_MANAGER = "chatterbox_opt.kernels.cuda.compile_cache:VerifyingCacheManager"


def use_private_directories() -> None:
    """Set the variables of both caches to directories of this user alone.

    What the environment names is kept, unless others can write there: then with a warning. To be
    called before kernels are compiled; a second call changes nothing.
    """
    for variable, name in DIRECTORIES.items():
        setting = os.environ.get(variable, "").strip()
        if not setting and name == "triton" and os.environ.get(TRITON_HOME):
            setting = str(Path(os.environ[TRITON_HOME]) / ".triton" / "cache")
        remedy = f"set {variable} to a directory that only you can write to"
        if not setting or not cache_directory.trusted(Path(setting), "compiled kernels", remedy):
            os.environ[variable] = str(_own(name, remedy))
    os.environ.setdefault(MANAGER, OUR_MANAGER)


def _own(name: str, remedy: str) -> Path:
    """A directory in the user's cache directory, or else one for this process."""
    path = platformdirs.user_cache_path("chatterbox-opt") / name
    if cache_directory.usable(path, "compiled kernels", remedy):
        return path
    path = Path(tempfile.mkdtemp(prefix="chatterbox-opt-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
