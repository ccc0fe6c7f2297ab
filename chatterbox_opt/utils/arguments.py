"""Checks of arguments that callers pass: numbers, names, paths and instances of our classes.

Responsible for kinds, and for saying in one line what was passed and what to pass. Not responsible
for ranges, which belong to the classes that have the fields; imports neither numpy nor torch.
"""

from __future__ import annotations

import math
import os
import reprlib
import threading
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from typing import Any, TypeVar

from chatterbox_opt.errors import InputError

Value = TypeVar("Value")


def shown(value: object) -> str:
    """A value in an error message: its repr on one line, shortened."""
    return " ".join(reprlib.repr(value).split())


def whole_number(name: str, value: object) -> int:
    """A whole number of any library, such as ``np.int64``, as an int.

    Raises:
        InputError: anything else; a bool, 1.0 and "1" too.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {shown(value)}; give a whole number")
    return int(value)


def number(name: str, value: object) -> int | float:
    """A number of any library, such as ``np.float32``, as an int or a float.

    Raises:
        InputError: anything else; a bool, NaN and "1" too.
    """
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            return int(value)
        if not math.isnan(converted := float(value)):
            return converted
    raise InputError(f"{name} is {shown(value)}; give a number, an int or a float")


def seconds_to_wait(name: str, value: object) -> float | None:
    """A timeout; None, or more than the platform can wait, is for ever.

    Raises:
        InputError: neither None nor a number.
    """
    if value is None:
        return None
    seconds = number(name, value)
    return float(seconds) if seconds <= threading.TIMEOUT_MAX else None


def name_or_path(name: str, value: object) -> str:
    """A name, or a path as a str or an ``os.PathLike``, as a str.

    Raises:
        InputError: anything else, such as bytes.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise InputError(f"{name} is {shown(value)}; give a name or a path as a str")
    return path


def instance(name: str, value: object, kind: Any, *, optional: bool = False) -> None:
    """Check that a value is of a class, an abstract one too, or None if it is optional.

    Raises:
        InputError: it is not.
    """
    if not (isinstance(value, kind) or (optional and value is None)):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(f"{name} is {shown(value)}; give {article} {kind.__name__}")


def instances(name: str, values: Iterable[Value], kind: type[Value]) -> Iterator[Value]:
    """The values, each checked when it is taken.

    Raises:
        InputError: one is not of the class.
    """
    for value in values:
        instance(name, value, kind)
        yield value
