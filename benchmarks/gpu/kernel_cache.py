"""Kernels that Triton compiled elsewhere, laid where it looks for them:
python -m benchmarks.gpu.kernel_cache ARCHIVE FOLDER

Knows that Triton keeps a kernel's files in a folder named by its key, and that keys hold no path.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path, PurePosixPath


def unpack(archive: Path, folder: Path) -> int:
    """Lay an archive's files under ``folder``, whatever folders it has above those of the keys.

    Returns:
        how many files there were.

    Raises:
        OSError, tarfile.TarError: it cannot be read, or ``folder`` not written.
    """
    count = 0
    with tarfile.open(archive) as file:
        for member in file:
            source = file.extractfile(member) if member.isfile() else None
            parts = PurePosixPath(member.name).parts
            if source is None or len(parts) < 2 or ".." in parts:
                continue
            target = folder.joinpath(*parts[-2:])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read())
            count += 1
    return count


if __name__ == "__main__":
    print(f"{unpack(Path(sys.argv[1]), Path(sys.argv[2]))} files of compiled kernels")
