"""How long something that failed on the device is left alone before it is tried again.

Responsible for the number of uses. Not responsible for what runs in the meantime.
"""

from __future__ import annotations

FIRST = 16  # uses that are skipped after the first failure
GROWTH = 4  # so many times more after each further one
MOST = 1 << 16


def uses_after(failures: int) -> int:
    """How many uses to skip after the given number of failures in a row, at least 1.

    A failure may be of the moment: memory that another process held, a driver that was busy. So
    nothing is given up for good; a failure of every try costs less than one use in a hundred.
    """
    return min(FIRST * GROWTH ** min(failures - 1, 16), MOST)
