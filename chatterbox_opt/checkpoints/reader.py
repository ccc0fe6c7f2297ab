"""Tensors of a safetensors file, read when asked for, and put into a module strictly."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chatterbox_opt.errors import WeightsError

log = logging.getLogger(__name__)
MAPPED = 32 << 20  # bytes read through one mapping of a weights file
# buffers that upstream computes and its loading forgives (S3Tokenizer.ignore_state_dict_missing)
FORGIVEN = ("tokenizer._mel_filters", "tokenizer.window")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file below a prefix, read when asked for.

    The file is mapped anew now and then: pages that were read count as this process's memory until
    the mapping ends, and one mapping for all would hold the whole file by the last tensor. Not for
    each tensor, for its table of contents is read every time.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        """Open the file.

        Raises:
            WeightsError: missing, damaged or half downloaded.
        """
        self._path = path
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is damaged or half downloaded ({error}): delete it and get it again"
            ) from error
        if names and all(name.startswith("model.") for name in names):
            prefix = "model." + prefix  # a state dict saved with its wrapper
        self._names = {n[len(prefix) :]: n for n in names if n.startswith(prefix)}
        self._file: Any = None
        self._read = 0  # bytes, through the mapping that is open

    def __getitem__(self, name: str) -> Tensor:
        if self._file is None or self._read > MAPPED:
            self._file, self._read = safe_open(self._path, framework="pt"), 0
        tensor: Tensor = self._file.get_tensor(self._names[name])
        self._read += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Load ``tensors`` into ``module``; every parameter must be there, further ones are ignored
    (upstream loads S3Gen with ``strict=False``; we do not forgive a missing layer).

    Args:
        assign: take the tensors themselves, with their dtype, in place of copies.

    Raises:
        WeightsError: a tensor is missing or of another shape.
    """
    try:
        loaded = module.load_state_dict(dict(tensors), strict=False, assign=assign)
        missing = loaded.missing_keys
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{what} does not fit ({reason}): the file and its config.json do not belong together"
        ) from error
    if missing := [name for name in missing if name not in FORGIVEN]:
        raise WeightsError(
            f"{what} lacks {len(missing)} tensors, first {missing[0]}: wrong or old file?"
        )
    module.eval().requires_grad_(False)
