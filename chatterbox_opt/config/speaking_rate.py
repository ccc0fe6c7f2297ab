"""How fast is spoken: 1 is the model's own rate, 2 twice as fast.

Responsible for the range that requests, parts of a text and job files share. Not responsible for
making it so (engine/rendering/stretch.py).
"""

from __future__ import annotations

from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.arguments import number, shown

MIN_RATE, MAX_RATE = 0.5, 2.0


def check_rate(value: object, name: str = "rate") -> float:
    """A rate as a float.

    Args:
        name: of what the value was given for, in the message.

    Raises:
        InputError: not a number, or out of range.
    """
    rate = number(name, value)
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"{name} is {shown(value)}; give {MIN_RATE:g} to {MAX_RATE:g}")
    return float(rate)


def combined(one: float, other: float) -> float:
    """The rate of a part that has a rate of its own, in a text that has one: their product, within
    the range."""
    return min(max(one * other, MIN_RATE), MAX_RATE)
