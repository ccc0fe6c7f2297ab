"""The flow's conformer encoder: our attention against upstream's."""

from __future__ import annotations

import pytest
import torch

from chatterbox_opt.models.flow.encoder import RelativeAttention, valid_mask
from chatterbox_opt.utils.upstream_import import import_upstream


def attentions(heads: int, width: int):
    """Upstream's and ours, with the same weights."""
    upstream = import_upstream("models.s3gen.transformer.attention")
    theirs = upstream.RelPositionMultiHeadedAttention(heads, width, 0.0).eval()
    ours = RelativeAttention(heads, width)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("length", [1, 2, 7, 64])
@pytest.mark.parametrize("rows", [1, 3])
def test_attention_with_relative_positions_is_upstreams(length, rows):
    theirs, ours = attentions(4, 48)
    random = torch.Generator().manual_seed(length)
    x = torch.randn(rows, length, 48, generator=random)
    positions = torch.randn(1, 2 * length - 1, 48, generator=random)
    lengths = torch.tensor([length, max(1, length // 2), max(1, length - 1)][:rows])
    mask = valid_mask(length, lengths)[:, None]
    nothing = torch.zeros(0, 0, 0, 0)
    with torch.inference_mode():
        expected, _ = theirs(x, x, x, mask, positions, nothing)
        found, cache = ours(x, x, x, mask, positions, nothing)
    assert cache is nothing
    for one, other, valid in zip(found, expected, lengths.tolist(), strict=True):
        assert torch.allclose(one[:valid], other[:valid], atol=1e-6)
        assert one.isfinite().all()


def test_gradients_of_the_attention_are_upstreams():
    """The built-in model is trained through it."""
    theirs, ours = attentions(2, 16)
    x, positions = torch.randn(2, 9, 16), torch.randn(1, 17, 16)
    mask = valid_mask(9, torch.tensor([9, 5]))[:, None]
    for net in (theirs, ours):
        net(x, x, x, mask, positions, torch.zeros(0, 0, 0, 0))[0][:, :5].square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-5)
