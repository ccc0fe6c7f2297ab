"""Keys and values of voices, kept from text to text.

Responsible for which are kept, and for the memory they take. Not responsible for computing them
(model.py).

What a voice adds to a prefix is the same for every text: 376 positions with Turbo and Nano, 34 with
the other models. Attention is causal, so none of them sees the text, and their keys and values are
the same too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

MAX_BYTES = 256 << 20  # in float32 Turbo's are 74 MB, Nano's 28 MB, those of the 0.5B 8 MB


class KeptConditionings:
    """Tensors by key, of a bounded size in all; the least recently used go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(tensor.nbytes for tensor in self._kept.values())

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor under ``key``, computed unless it is kept."""
        found = self._kept.pop(key, None)
        tensor = compute() if found is None else found
        self._kept[key] = tensor
        while self.nbytes > self._max_bytes:
            self._kept.popitem(last=False)
        return tensor

    def clear(self) -> None:
        """Free all."""
        self._kept.clear()
