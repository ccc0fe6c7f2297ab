"""Triton's cache of compiled kernels, with a digest of each file.

Responsible for files that are not what was written: Triton by itself loads whatever it finds. Not
responsible for where the cache is (runtime/compiler_caches.py, which names this class to Triton).
Imports Triton, as gemv.py does.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from triton.runtime.cache import FileCacheManager

log = logging.getLogger(__name__)

SUFFIX = ".digest"  # of the file with a file's digest


class VerifyingCacheManager(FileCacheManager):  # type: ignore[misc]
    """A kernel's files; a damaged one is removed, with a warning, and the kernel compiled again.

    A file without a digest is used: Triton's own manager wrote it, or another process is about to
    write the digest.
    """

    def put(self, data: str | bytes, filename: str, binary: bool = True) -> str:  # noqa: FBT001,FBT002
        """Write a file, then its digest; return the file's path."""
        content = data if isinstance(data, bytes) else str(data)
        path: str = super().put(content, filename, binary)
        stored = content if isinstance(content, bytes) else content.encode()
        super().put(_digest(filename, stored), filename + SUFFIX, False)
        return path

    def get_file(self, filename: str) -> str | None:
        """The path of a file that is what was written, or None."""
        path: str | None = super().get_file(filename)
        return path if path and self._verified(filename) else None

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The paths of a kernel's files by name, or None if one of them is damaged."""
        if self.get_file(f"__grp__{filename}") is None:
            return None
        try:
            group: dict[str, str] | None = super().get_group(filename)
        except (ValueError, AttributeError) as error:  # damaged, and without a digest
            self._remove(Path(self._make_path(f"__grp__{filename}")), str(error))
            return None
        return group if group and all(map(self._verified, group)) else None

    def _verified(self, filename: str) -> bool:
        path = Path(self._make_path(filename))
        digest = path.with_name(filename + SUFFIX)
        try:
            if (
                not digest.exists()
                or digest.read_bytes() == _digest(filename, path.read_bytes()).encode()
            ):
                return True
            reason = "its content has changed"
        except OSError as error:
            reason = error.strerror or str(error)
        self._remove(path, reason)
        digest.unlink(missing_ok=True)
        return False

    def _remove(self, path: Path, reason: str) -> None:
        log.warning("the compiled kernel '%s' is not used (%s): compiling again", path, reason)
        path.unlink(missing_ok=True)


def _digest(name: str, content: bytes) -> str:
    return hashlib.blake2b(name.encode() + b"\0" + content, digest_size=20).hexdigest()
