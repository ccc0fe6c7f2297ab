"""The type of audio in memory, and of what takes it.

Responsible for these names only. Not responsible for rates or files (audio/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Wave: TypeAlias = "npt.NDArray[np.float32]"  # float32 [n] in [-1, 1]


class WaveSink(Protocol):
    """Takes sound as it comes: a file, a stream, a player."""

    def write(self, wave: Wave) -> None:
        """Take float32 [n], 24 kHz."""
