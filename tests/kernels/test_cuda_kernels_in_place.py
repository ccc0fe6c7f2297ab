"""Triton's kernels where they are used, by its interpreter: the trial, early launch, a whole step."""

from __future__ import annotations

import pytest
from helpers.triton_interpreter import OTHERS, interpreted, on_this_numpy

pytest.importorskip("triton", reason="this torch comes without Triton")


@on_this_numpy
def test_they_compute_what_they_should_in_their_place(tiny):
    interpreted(OTHERS, tiny)
