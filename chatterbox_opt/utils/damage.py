"""Which errors mean that data is damaged, when a parser of somebody else reads it.

Responsible for the list. Not responsible for messages or remedies.

pickle, ZIP, safetensors, torch.load and the code that takes their results apart raise nearly any
exception on damaged data: a key that is missing, a list where a tensor was, a size of 2^63. So this
is nearly all of ``Exception``; it must surround the reading of data and nothing else. Whoever
catches it raises an error of ours from it, or logs it, so that ``--debug`` shows a programming
error for what it is.
"""

from __future__ import annotations

import pickle
import struct
import zipfile

DAMAGE_ERRORS = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, LookupError, TypeError),
    *(AttributeError, ValueError, RuntimeError, AssertionError, ArithmeticError, MemoryError),
)
