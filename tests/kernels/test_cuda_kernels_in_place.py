"""The Triton kernels in use, in Triton's interpreter: the self-test, PDL, a whole decode step."""

from __future__ import annotations

import pytest
from helpers.triton_interpreter import OTHERS, interpreted, on_this_numpy

pytest.importorskip("triton", reason="this torch comes without Triton")


@on_this_numpy
def test_kernels_match_pytorch_in_use(tiny):
    interpreted(OTHERS, tiny)
