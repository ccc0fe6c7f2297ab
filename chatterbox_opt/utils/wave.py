"""The type of audio in memory.

Responsible for this name only. Not responsible for rates or files (audio/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Wave: TypeAlias = "npt.NDArray[np.float32]"  # float32 [n] in [-1, 1]
