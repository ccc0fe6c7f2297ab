"""Triton's cache of compiled kernels, packed on one machine and unpacked on another:
python -m benchmarks.gpu.kernel_cache ARCHIVE FOLDER

Responsible for the archive. Not responsible for what is compiled (compile_ahead.py). Triton keeps a
kernel's files in a folder named by its key; keys depend on no path, but a file in each folder,
__grp__*, lists the others by their absolute paths. In the archive these are names; unpacking makes
them absolute again: Triton recompiles if a listed file does not exist.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path, PurePosixPath

GROUP = "__grp__"  # prefix of a list's name
FILES, LISTED = (".cubin", ".json"), "child_paths"  # what a launch loads, and a list's only key


def pack(cache: Path, archive: Path) -> None:
    """Archive a cache, without the files of intermediate compiler stages. Changes the cache."""
    for group in cache.glob(f"*/{GROUP}*.json"):
        names = [name for name in json.loads(group.read_text())[LISTED] if name.endswith(FILES)]
        group.write_text(json.dumps({LISTED: {name: name for name in names}}))
    for path in cache.glob("*/*"):
        if path.suffix not in FILES:
            path.unlink()
    with tarfile.open(archive, "w:xz") as file:
        file.add(cache, "kernels")


def unpack(archive: Path, folder: Path) -> int:
    """Unpack an archive's key folders into ``folder``.

    Returns:
        the number of kernels.

    Raises:
        OSError, tarfile.TarError, ValueError: the archive is not readable or ``folder``
            not writable.
    """
    count = 0
    with tarfile.open(archive) as file:
        for member in file:
            source = file.extractfile(member) if member.isfile() else None
            parts = PurePosixPath(member.name).parts
            if source is None or len(parts) < 2 or ".." in parts:
                continue
            target, content = folder.joinpath(*parts[-2:]), source.read()
            if target.name.startswith(GROUP):
                names = json.loads(content)[LISTED]
                absolute = {name: str(target.with_name(name)) for name in names}
                content = json.dumps({LISTED: absolute}).encode()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            count += target.suffix == ".cubin"
    return count


if __name__ == "__main__":
    print(f"{unpack(Path(sys.argv[1]), Path(sys.argv[2]))} compiled kernels")
