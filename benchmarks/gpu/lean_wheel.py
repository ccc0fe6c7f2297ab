"""PerTh's wheel without the weights of its decoder, which only finds a watermark again.

Knows how torch.save lays numbers into an archive, and a wheel's RECORD. Needs no torch: the bytes
of storages are overwritten where they lie. 34 MB become 9: what puts marks is bit for bit the same,
and marks cannot be found with it.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

CHECKPOINT = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
KEPT = "encoder."  # names of weights that put marks begin so
SMALL = 100_000  # bytes that are left alone: nothing is won
LEAN = 20_000_000  # bytes below which a wheel has been made lean already


class _Names(pickle.Unpickler):
    """Reads which storage each tensor is in, and makes no tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "OrderedDict":
            return collections.OrderedDict
        if name.startswith("_rebuild"):
            return lambda storage, *_: storage
        return name

    def persistent_load(self, given: Any) -> Any:
        return given[2]  # the storage's key


def make_lean(wheel: Path) -> int:
    """Zero the decoder in a wheel; return how many bytes that were, 0 if it was lean.

    Raises:
        ValueError: the wheel is not as expected; it is left as it was.
    """
    with zipfile.ZipFile(wheel) as archive:
        if sum(info.compress_size for info in archive.infolist()) <= LEAN:
            return 0
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    if CHECKPOINT not in files:
        raise ValueError(f"{wheel.name} has no {CHECKPOINT}: another version?")
    files[CHECKPOINT], zeroed = without_decoder(files[CHECKPOINT])
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    files[record] = _recorded(files[record], CHECKPOINT, files[CHECKPOINT])
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    part.replace(wheel)
    return zeroed


def without_decoder(checkpoint: bytes) -> tuple[bytes, int]:
    """A checkpoint whose large weights outside of the encoder are zero, and how many bytes were.

    Raises:
        ValueError: a storage is compressed, which torch.save never does.
    """
    archive = zipfile.ZipFile(io.BytesIO(checkpoint))
    root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    storages = _Names(io.BytesIO(archive.read(root))).load()["model"]
    new, zeroed = bytearray(checkpoint), 0
    for name, storage in storages.items():
        info = archive.getinfo(root.replace("data.pkl", f"data/{storage}"))
        if name.startswith(KEPT) or info.file_size < SMALL:
            continue
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the weights of {name} are compressed")
        start = _data_at(checkpoint, info.header_offset)
        new[start : start + info.file_size] = bytes(info.file_size)
        zeroed += info.file_size
    return bytes(new), zeroed


def _data_at(archive: bytes, header: int) -> int:
    """Where a stored file's bytes begin: behind a local header of 30 bytes, its name and more."""
    name = int.from_bytes(archive[header + 26 : header + 28], "little")
    extra = int.from_bytes(archive[header + 28 : header + 30], "little")
    return header + 30 + name + extra


def _recorded(record: bytes, name: str, data: bytes) -> bytes:
    """A wheel's RECORD with a file's new digest."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    lines = (
        f"{name},sha256={digest},{len(data)}" if line.startswith(f"{name},") else line
        for line in record.decode().splitlines()
    )
    return ("\n".join(lines) + "\n").encode()
