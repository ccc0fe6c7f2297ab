"""Reads tensors of a safetensors file lazily, and loads them strictly into a module.

Responsible for damaged, missing and unexpected tensors. Not responsible for their names
(models/*/convert.py) or for which file is read (loader.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from chatterbox_opt.errors import WeightsError

REMAP_BYTES = 32 << 20  # bytes read through one mapping of a weights file
# upstream computes these buffers and ignores them in files (S3Tokenizer.ignore_state_dict_missing)
COMPUTED_BUFFERS = ("tokenizer._mel_filters", "tokenizer.window")


class Tensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file whose names start with a prefix, read when indexed.

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
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{path} is damaged or half downloaded ({error}): delete it and get it again"
            ) from error
        if names and all(name.startswith("model.") for name in names):
            prefix = "model." + prefix  # a state dict that was saved with its wrapper module
        self._names = {n[len(prefix) :]: n for n in names if n.startswith(prefix)}
        self._file: Any = None
        self._bytes_read = 0  # through the open mapping

    def __getitem__(self, name: str) -> Tensor:
        if self._file is None or self._bytes_read > REMAP_BYTES:
            self._file, self._bytes_read = safe_open(self._path, framework="pt"), 0
        tensor: Tensor = self._file.get_tensor(self._names[name])
        self._bytes_read += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], what: str, *, assign: bool = False
) -> None:
    """Load ``tensors`` into ``module``. Every parameter must be present; extra tensors are ignored
    (upstream loads S3Gen with ``strict=False``, which also accepts missing layers; we do not).

    Args:
        what: the module's name, for error messages.
        assign: use the tensors themselves, with their dtype, instead of copying.

    Raises:
        WeightsError: a tensor is missing or of the wrong shape.
    """
    try:
        loaded = module.load_state_dict(dict(tensors), strict=False, assign=assign)
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
