"""Disk cache of converted weights: the next start memory-maps them instead of converting again.

Responsible for one directory, for which checkpoint a file belongs to, and for the size limit. Not
responsible for how weights are converted or what the tensors mean: it maps names to tensors. Other
files in the directory are left alone.

    DIR/<hash of the checkpoint's path>-<hash of its content>-<part>-<variant>.pt

What is cached was decided by measurements on two EPYC cores at full size. An fp16/bf16 T3 takes
1.3 s to read, cast and stack, and 0.02 s from here. Float32 takes 1.5 s, would need 2 GB of disk,
and 0.6 s of that would return as page faults: it is not cached, nor is any small model.

Files are torch's own archives with a digest (sealed_file.py), read with ``weights_only`` (plain
tensors, no code) and memory-mapped: nothing is copied. A file with a wrong digest is removed and
made again. safetensors would do except for its 8-byte alignment: a bfloat16 GEMM with one or two
rows took 10 % longer on such a matrix. Here it is 64 bytes, as in memory, so a cached weight
behaves exactly like a freshly converted one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from chatterbox_opt.checkpoints import registry, sealed_file
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.errors import first_line
from chatterbox_opt.utils import cache_directory
from chatterbox_opt.utils.atomic_file import PART, atomic_write
from chatterbox_opt.utils.damage import DAMAGE_ERRORS
from chatterbox_opt.utils.steps import announce

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FORMAT = 4  # of the tensors' names and layout; changing it invalidates all files
UNCONVERTED = "float32"  # the variant of the checkpoint's own files; never cached
MIN_BYTES = 64 << 20  # smaller parts load fast enough without the cache
MAX_BYTES = 8 << 30  # of the directory; least recently used files are evicted
STALE_SECONDS = 86_400  # after which a killed process's half-written file is removed
VARIABLE = "CHATTERBOX_WEIGHT_CACHE"
OFF_VALUES = ("", "0", "false", "off", "no")
OWN_NAME = re.compile(r"[0-9a-f]{12}-[0-9a-f]{16}-(t3|flow)-[0-9a-z-]+\.pt")
ARCHIVE = b"PK\x03\x04"  # how a file of ours begins
SUBFOLDER = "chatterbox-opt-weights"  # of a directory that the user names, and may have other uses


@dataclass(frozen=True, slots=True)
class WeightCache:
    """Converted weights in one directory; safe with several processes: writes are atomic.

    Attributes:
        directory: created by the first write; None disables the cache.
        min_bytes: smaller parts are not cached.
        max_bytes: size limit of the directory.
    """

    directory: Path | None
    min_bytes: int = MIN_BYTES
    max_bytes: int = MAX_BYTES

    def tensors(
        self,
        checkpoint: Checkpoint,
        part: str,
        variant: str,
        convert: Callable[[], Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        """The tensors of a part: memory-mapped if cached, else converted and cached.

        A damaged file is removed and made again. It, a read-only directory or a full disk is
        logged and costs only time.

        Args:
            part: "t3" or "flow".
            variant: "bfloat16", "int8", ...; "float32" is never cached.
            convert: called on a miss; may return any tensors under any names.
        """
        path = self._path(checkpoint, part, variant)
        if path is None:
            return convert()
        cached = _read(path)
        if cached is not None:
            return cached
        announce("loading and converting the weights")
        tensors = convert()
        if sum(t.nbytes for t in tensors.values()) >= self.min_bytes:
            try:
                self._write(path, tensors)
                self._evict(path)
            except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
                reason = str(error).splitlines()[0]
                log.debug("converted weights were not cached in %s (%s)", self.directory, reason)
        return tensors

    def discard(self, checkpoint: Checkpoint, part: str, variant: str, reason: str) -> None:
        """Remove tensors that do not fit the model, with a warning."""
        if path := self._path(checkpoint, part, variant):
            _discard(path, reason)

    def entries(self) -> list[Path]:
        """The files of this cache, least recently used first; no others in the directory."""
        paths = self.directory.glob("*.pt") if self.directory else ()
        return sorted(filter(_is_own, paths), key=lambda path: path.stat().st_mtime)

    def clear(self) -> int:
        """Remove the files of this cache; return the number of bytes freed."""
        freed = 0
        for path in self.entries():
            freed += path.stat().st_size
            path.unlink(missing_ok=True)
        return freed

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        import torch

        cache_directory.create(path.parent)
        size = sum(t.nbytes for t in tensors.values())
        if shutil.disk_usage(path.parent).free < 2 * size:
            raise OSError(f"less than {2 * size >> 20} MiB free")
        with atomic_write(path) as part:
            torch.save({name: _compact(tensor) for name, tensor in tensors.items()}, part)
            sealed_file.seal(part, path.name)
        log.debug("cached %s, %d MiB", path.name, size >> 20)

    def _path(self, checkpoint: Checkpoint, part: str, variant: str) -> Path | None:
        if self.directory is None or variant == UNCONVERTED:
            return None
        location, content = _path_hash(checkpoint.directory), _content_hash(checkpoint)
        return self.directory / f"{location}-{content}-{part}-{variant}.pt"

    def _evict(self, newest: Path) -> None:
        """Remove files of an older checkpoint at the same path, stale temporary files, and the
        least recently used files above the size limit."""
        location, content, _ = newest.name.split("-", 2)
        for path in self.entries():
            of_location = path.name.startswith(f"{location}-")
            if of_location and not path.name.startswith(f"{location}-{content}-"):
                path.unlink(missing_ok=True)
        for path in newest.parent.iterdir():
            if PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(path.stat().st_size for path in self.entries())
        for path in self.entries():
            if total > self.max_bytes and path != newest:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)


def default(*, keep: bool = True) -> WeightCache:
    """The cache in ``CHATTERBOX_WEIGHT_CACHE`` or in the platform's cache directory; none if others
    can write there, with a warning.

    Args:
        keep: False disables the cache, as does the variable if it is one of ``OFF_VALUES``.
    """
    import platformdirs

    setting = os.environ.get(VARIABLE)
    if not keep or (setting is not None and setting.lower() in OFF_VALUES):
        return WeightCache(None)
    users = platformdirs.user_cache_path("chatterbox-opt") / "weights"
    directory = Path(setting) / SUBFOLDER if setting else users
    remedy = f"set {VARIABLE} to a directory that only you can write to"
    places = (directory.parent, directory) if setting else (directory,)
    own = all(cache_directory.trusted(path, "converted weights", remedy) for path in places)
    return WeightCache(directory if own else None)


def _read(path: Path) -> Mapping[str, Tensor] | None:
    import torch

    try:
        if not sealed_file.is_sealed(path, path.name):
            raise ValueError("its content has changed")
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise TypeError("it has other values than tensors")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, *DAMAGE_ERRORS) as error:
        log.debug("'%s' cannot be read", path, exc_info=error)
        _discard(path, getattr(error, "strerror", None) or first_line(error))
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # marks it as used; not possible in a read-only directory
    return cast("Mapping[str, Tensor]", tensors)


def _discard(path: Path, reason: str) -> None:
    log.warning("the cached weights '%s' are not used (%s): converting again", path, reason)
    cache_directory.discard(path)


def _is_own(path: Path) -> bool:
    """Whether a file has a name and a beginning that only this cache gives."""
    if not OWN_NAME.fullmatch(path.name) or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(ARCHIVE)) == ARCHIVE
    except OSError:
        return False


def _compact(tensor: Tensor) -> Tensor:
    """The tensor in a storage of its own size: torch.save writes whole storages."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach() if whole else tensor.detach().contiguous().clone()


def _path_hash(directory: Path) -> str:
    return hashlib.blake2b(str(directory.resolve()).encode(), digest_size=6).hexdigest()


def _content_hash(checkpoint: Checkpoint) -> str:
    """Digest of the checkpoint's content, which is only sampled, and of the files' mtimes."""
    files = (path for path in (checkpoint.t3, checkpoint.s3gen) if path.is_file())
    stats = [os.stat(path) for path in files]
    facts = (FORMAT, registry.identity(checkpoint), [(s.st_size, s.st_mtime_ns) for s in stats])
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
