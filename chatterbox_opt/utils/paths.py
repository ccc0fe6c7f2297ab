"""Places in the file system, whether or not they are there.

Responsible for looking at names only. Not responsible for whether a place may be used.
"""

from __future__ import annotations

import os
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there and that this user can look at."""
    return next(place for place in (path, *path.absolute().parents) if os.path.exists(place))
