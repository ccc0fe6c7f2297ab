"""Reads tensors of a safetensors or torch file lazily, and loads them strictly into a module.

Responsible for damaged, missing and unexpected tensors. Not responsible for their names
(models/*/convert.py) or for which file is read (loader.py).

A torch file (``.pt``) is read with ``weights_only``, so it cannot run code, and mapped: it takes no
more memory than its size, however large its tensors claim to be.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chatterbox_opt.errors import WeightsError, first_line
from chatterbox_opt.utils.damage import DAMAGE_ERRORS

MAX_HEADER = 16 << 20  # bytes; Chatterbox's largest has 0.3 MB
MAX_MEMBERS = 1 << 16  # of a torch file, one for each tensor; s3gen.pt has 2,500
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGER = (torch.int64, torch.int32)
REMAP_BYTES = 32 << 20  # bytes read through one mapping of a weights file
# upstream computes these buffers and ignores them in files (S3Tokenizer.ignore_state_dict_missing)
COMPUTED_BUFFERS = ("tokenizer._mel_filters", "tokenizer.window")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a file whose names start with a prefix, read when indexed.

    The file is mapped again every ``REMAP_BYTES``: pages that were read count as this process's
    memory until the mapping is closed, so a single mapping would end up holding the whole file. It
    is not mapped again for every tensor because the header is parsed each time.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Open the file and read its header.

        Raises:
            WeightsError: missing, damaged or half downloaded.
        """
        self._path = path
        self._open: type[_File] = _TorchFile if path.suffix == ".pt" else _SafetensorsFile
        with _damage_of(path):
            self._open.check(path)
            self._file: _File = self._open(path)
            names = self._file.names()
        if names and all(name.startswith("model.") for name in names):
            prefix = "model." + prefix  # a state dict that was saved with its wrapper module
        self._names = {n[len(prefix) :]: n for n in names if n.startswith(prefix)}
        self._bytes_read = 0  # through the open mapping

    def __getitem__(self, name: str) -> Tensor:
        full_name = self._names[name]
        with _damage_of(self._path):
            if self._bytes_read > self._open.remap_bytes:
                self._file, self._bytes_read = self._open(self._path), 0
            tensor = self._file.tensor(full_name)
        self._bytes_read += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _File(Protocol):
    """One mapping of a weights file.

    Attributes:
        remap_bytes: after which it is closed and another one opened.
    """

    remap_bytes: ClassVar[int]

    def __init__(self, path: Path) -> None: ...

    @staticmethod
    def check(path: Path) -> None:
        """Raise ValueError for what would take long to parse, or is of another format."""

    def names(self) -> list[str]:
        """The names of all tensors; raises TypeError or ValueError for what is none."""

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the mapping."""


class _SafetensorsFile:
    """The format of safetensors."""

    remap_bytes: ClassVar[int] = REMAP_BYTES

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    @staticmethod
    def check(path: Path) -> None:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER:
            raise ValueError(f"its header claims {size:,} bytes")

    def names(self) -> list[str]:
        return list(self._file.keys())

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _TorchFile:
    """A state dict that torch.save wrote."""

    remap_bytes: ClassVar[int] = 8 * REMAP_BYTES  # its header takes longer: 0.1 s of s3gen.pt

    def __init__(self, path: Path) -> None:
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(tensors, Mapping):
            raise TypeError(f"it has a {type(tensors).__name__}, not tensors by name")
        self._tensors, self._size = tensors, path.stat().st_size

    @staticmethod
    def check(path: Path) -> None:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is empty, half downloaded, or not a file of torch.save")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        # tensors are mapped, everything else is read
        headers = sum(m.file_size for m in members if "/data/" not in m.filename)
        if headers > MAX_HEADER or len(members) > MAX_MEMBERS:
            raise ValueError(f"its header claims {headers:,} bytes and {len(members):,} parts")

    def names(self) -> list[str]:
        for name, tensor in self._tensors.items():
            plain = isinstance(name, str) and isinstance(tensor, Tensor)
            if not plain or tensor.layout != torch.strided or tensor.is_quantized:
                raise TypeError(f"{name!r:.60} is no tensor")
            if tensor.nbytes > self._size:  # strides of 0 can claim any shape
                raise ValueError(f"{name:.60} claims {tensor.nbytes:,} bytes")
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._tensors[name]
        return tensor.detach()


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Raise WeightsError for what the block finds to be wrong with a file."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or first_line(error)}): "
            "check the permissions, or get it again"
        ) from error
    except (SafetensorError, *DAMAGE_ERRORS) as error:
        raise WeightsError(
            f"{path} is damaged or half downloaded ({first_line(error)}): "
            "delete it and get it again"
        ) from error


def check_dtype(what: str, name: str, tensor: Tensor, *, expected: torch.dtype) -> None:
    """Check that a tensor has numbers of the expected kind; their precision may differ.

    Raises:
        WeightsError: integers in place of floating-point numbers or the reverse, or float8, which
            upstream never writes.
    """
    kind = FLOATING if expected.is_floating_point else INTEGER
    if tensor.dtype not in kind:
        raise WeightsError(
            f"{what} {name} is {tensor.dtype}, not {' or '.join(map(str, kind))}: "
            "wrong or converted file? get it again"
        )


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Load ``tensors`` into ``module``. Every parameter must be present; extra tensors are ignored
    (upstream loads S3Gen with ``strict=False``, which also accepts missing layers; we do not).

    Args:
        what: the module's name, for error messages.
        assign: use the tensors themselves, with their dtype, instead of copying.

    Raises:
        WeightsError: a tensor is missing, or of the wrong shape or dtype.
    """
    tensors = dict(tensors)
    if not assign:  # what is assigned was converted before, to integers too
        for name, parameter in module.state_dict().items():
            if name in tensors:
                check_dtype(what, name, tensors[name], expected=parameter.dtype)
    try:
        loaded = module.load_state_dict(tensors, strict=False, assign=assign)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{what} does not fit ({reason}): the file and its config.json do not belong together"
        ) from error
    if missing := [name for name in loaded.missing_keys if name not in COMPUTED_BUFFERS]:
        raise WeightsError(
            f"{what} lacks {len(missing)} tensors, first {missing[0]}: wrong or old file?"
        )
    module.eval().requires_grad_(False)
