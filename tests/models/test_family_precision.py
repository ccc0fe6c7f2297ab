"""T3 of every kind in the narrow precisions of a CPU: how close its logits are to float32's."""

from __future__ import annotations

import pytest
import torch
from helpers.quality import check_narrow, forced_log_probs

from chatterbox_opt.checkpoints import loader, registry

SIZES = 4, 30  # texts, tokens
# by precision, for random weights of a tiny model: least top-1, greatest KL divergence
BOUNDS = {"int8": (0.85, 0.02), "int4": (0.25, 1.0), "bfloat16": (0.87, 0.01)}


@pytest.fixture(scope="module", params=["turbo", "nano", "multilingual"])
def exact(request, family):
    checkpoint = registry.locate(str(family(request.param)))
    return checkpoint, forced_log_probs(loader.load_t3(checkpoint, torch.float32), *SIZES)


@pytest.mark.parametrize("narrow", BOUNDS)
def test_narrow_steps_are_close_to_float32(exact, narrow):
    check_narrow(*exact, narrow, BOUNDS[narrow], *SIZES)
