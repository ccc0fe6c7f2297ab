"""Converted weights kept on disk, so that the next start maps them instead of converting again.

Knows one directory, whose weights a file holds, and how much may lie there. Knows nothing of how
weights are converted or what their tensors mean: tensors by name go in, the same come out.

    DIR/<where the checkpoint lies>-<which checkpoint>-<part>-<form>.pt

What is worth keeping was measured on two EPYC cores at the true shapes. A half-precision T3 costs
1.3 s of reading, casting and stacking, and 0.02 s from here. Float32 costs 1.5 s, would take 2 GB
of disk, and 0.6 s of that comes back as page faults: it is not kept, nor is any small model.

Files are torch's own archives, read with ``weights_only`` (plain tensors, no code) and mapped: no
copy is made, pages are read when used. safetensors would do but for its alignment of 8 bytes: a
bfloat16 product with one or two rows took 10 % longer over such a matrix. Here it is 64 bytes, as
in memory, so that a kept weight is in all respects what a fresh one is.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.utils.atomic_file import PART, atomic_write

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FORMAT = 3  # of the tensors' names and layout; a change here converts all again
AS_READ = "float32"  # the form of the checkpoint's own files
LEAST = 64 << 20  # bytes; smaller parts load in no time
MOST = 8 << 30  # bytes in the directory; what was used longest ago goes first
ABANDONED = 86_400  # seconds after which a half-written file of a killed process is removed
VARIABLE = "CHATTERBOX_WEIGHT_CACHE"
OFF = ("", "0", "false", "off", "no")
_DAMAGED = (OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError,
            pickle.UnpicklingError)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightCache:
    """Converted weights below one directory. Safe with several processes: files appear whole.

    Attributes:
        directory: made when first written to; None keeps nothing.
        least: bytes below which a part is not kept.
        most: bytes that may lie in the directory.
    """

    directory: Path | None
    least: int = LEAST
    most: int = MOST

    def tensors(
        self,
        checkpoint: Checkpoint,
        part: str,
        form: str,
        convert: Callable[[], Mapping[str, Tensor]],
    ) -> Mapping[str, Tensor]:
        """A part's tensors in some form: mapped if they are kept, else converted and kept.

        A file that is damaged, a directory that cannot be written to or a full disk cost time, not
        the result: they are logged.

        Args:
            part: "t3", "flow": what is converted.
            form: "bfloat16", "int8": how; "float32" is never kept.
            convert: called when nothing is kept; may return any tensors, under any names.
        """
        if self.directory is None or form == AS_READ:
            return convert()
        place, owner = _place(checkpoint.directory), _owner(checkpoint)
        path = self.directory / f"{place}-{owner}-{part}-{form}.pt"
        found = _read(path)
        if found is not None:
            return found
        tensors = convert()
        if sum(t.nbytes for t in tensors.values()) >= self.least:
            try:
                self._write(path, tensors)
                self._tidy(place, owner, path)
            except (OSError, RuntimeError) as error:  # torch says RuntimeError for a full disk
                reason = str(error).splitlines()[0]
                log.debug("converted weights were not kept in %s (%s)", self.directory, reason)
        return tensors

    def entries(self) -> list[Path]:
        """The files, those used longest ago first."""
        found = list(self.directory.glob("*.pt")) if self.directory else []
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def clear(self) -> int:
        """Remove all files; return how many bytes went."""
        sizes = 0
        for path in self.entries():
            sizes += path.stat().st_size
            path.unlink(missing_ok=True)
        return sizes

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        import torch

        path.parent.mkdir(parents=True, exist_ok=True)
        size = sum(t.nbytes for t in tensors.values())
        if shutil.disk_usage(path.parent).free < 2 * size:
            raise OSError(f"less than {2 * size >> 20} MiB free")
        content = {"name": path.name, "tensors": {n: _alone(t) for n, t in tensors.items()}}
        with atomic_write(path) as part:
            torch.save(content, part)
        log.debug("kept %s, %d MiB", path.name, size >> 20)

    def _tidy(self, place: str, owner: str, newest: Path) -> None:
        """Remove what this checkpoint's place held before, what a killed process left, and what
        is too much."""
        for path in newest.parent.iterdir():
            old = path.name.startswith(f"{place}-") and not path.name.startswith(f"{place}-{owner}")
            left = PART.fullmatch(path.name) and time.time() - path.stat().st_mtime > ABANDONED
            if old or left:
                path.unlink(missing_ok=True)
        total = sum(path.stat().st_size for path in self.entries())
        for path in self.entries():
            if total > self.most and path != newest:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)


def default(*, keep: bool = True) -> WeightCache:
    """The cache in the default directory, or none: ``CHATTERBOX_WEIGHT_CACHE`` is a directory, or
    false."""
    import platformdirs

    chosen = os.environ.get(VARIABLE)
    if not keep or (chosen is not None and chosen.lower() in OFF):
        return WeightCache(None)
    return WeightCache(
        Path(chosen) if chosen else Path(platformdirs.user_cache_dir("chatterbox-opt")) / "weights"
    )


def _read(path: Path) -> Mapping[str, Tensor] | None:
    import torch

    if not path.exists():
        return None
    try:
        saved: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if saved["name"] != path.name:
            raise ValueError(f"it is {saved['name']}")
        tensors: dict[str, Tensor] = saved["tensors"]
    except _DAMAGED as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        log.info("kept weights %s are damaged (%s): converted again", path.name, reason)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # "used": a directory that may only be read has no order
    return tensors


def _alone(tensor: Tensor) -> Tensor:
    """The tensor with nothing else in its storage, which is what gets written."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach() if whole else tensor.detach().contiguous().clone()


def _place(directory: Path) -> str:
    return hashlib.blake2b(str(directory.resolve()).encode(), digest_size=6).hexdigest()


def _owner(checkpoint: Checkpoint) -> str:
    """Digest that changes with the checkpoint's content; times of the files too, because the
    content is only sampled."""
    stats = [os.stat(checkpoint.path(name)) for name in (registry.T3, registry.S3GEN)]
    facts = (FORMAT, registry.identity(checkpoint), [(s.st_size, s.st_mtime_ns) for s in stats])
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
