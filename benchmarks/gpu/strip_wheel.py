"""Strips PerTh's wheel of the weights of its decoder, which only detects watermarks.

Responsible for the archive format of torch.save, and a wheel's RECORD. Needs no torch: the bytes of
storages are zeroed in place. 34 MB become 9: the encoder that adds watermarks is bit for bit the
same; detecting them does not work with it.
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
ENCODER_PREFIX = "encoder."  # of the names of the weights that add watermarks
SMALL = 100_000  # bytes, below which zeroing saves nothing
STRIPPED_BYTES = 20_000_000  # below which a wheel is stripped already


class _Names(pickle.Unpickler):
    """Returns the storage key of each tensor instead of the tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "OrderedDict":
            return collections.OrderedDict
        if name.startswith("_rebuild"):
            return lambda storage, *_: storage
        return name

    def persistent_load(self, pid: Any) -> Any:
        return pid[2]  # the storage's key


def strip_wheel(wheel: Path) -> int:
    """Zero the decoder in a wheel; return the number of bytes, 0 if it was stripped already.

    Raises:
        ValueError: the wheel is not as expected; it is left unchanged.
    """
    with zipfile.ZipFile(wheel) as archive:
        if sum(info.compress_size for info in archive.infolist()) <= STRIPPED_BYTES:
            return 0
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    if CHECKPOINT not in files:
        raise ValueError(f"{wheel.name} has no {CHECKPOINT}: another version?")
    files[CHECKPOINT], zeroed = without_decoder(files[CHECKPOINT])
    record = next(name for name in files if name.endswith(".dist-info/RECORD"))
    files[record] = _with_digest(files[record], CHECKPOINT, files[CHECKPOINT])
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    part.replace(wheel)
    return zeroed


def without_decoder(checkpoint: bytes) -> tuple[bytes, int]:
    """A checkpoint with the large weights outside of the encoder zeroed, and their bytes.

    Raises:
        ValueError: a storage is compressed, which torch.save never does.
    """
    archive = zipfile.ZipFile(io.BytesIO(checkpoint))
    root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    storages = _Names(io.BytesIO(archive.read(root))).load()["model"]
    new, zeroed = bytearray(checkpoint), 0
    for name, storage in storages.items():
        info = archive.getinfo(root.replace("data.pkl", f"data/{storage}"))
        if name.startswith(ENCODER_PREFIX) or info.file_size < SMALL:
            continue
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the weights of {name} are compressed")
        start = _data_at(checkpoint, info.header_offset)
        new[start : start + info.file_size] = bytes(info.file_size)
        zeroed += info.file_size
    return bytes(new), zeroed


def _data_at(archive: bytes, header: int) -> int:
    """Offset of a stored file's data: after a 30-byte local header, its name and extra field."""
    name = int.from_bytes(archive[header + 26 : header + 28], "little")
    extra = int.from_bytes(archive[header + 28 : header + 30], "little")
    return header + 30 + name + extra


def _with_digest(record: bytes, name: str, data: bytes) -> bytes:
    """A wheel's RECORD with a file's new digest."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    lines = (
        f"{name},sha256={digest},{len(data)}" if line.startswith(f"{name},") else line
        for line in record.decode().splitlines()
    )
    return ("\n".join(lines) + "\n").encode()
