"""The flow's attention through oneDNN's products, compared with PyTorch's fused kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close

from chatterbox_opt.layers import attention


def heads(dtype, frames=70):
    """q, k, v as in the estimator: views of one fused projection."""
    qkv = torch.randn(2, frames, 3 * 4 * 32, generator=torch.Generator().manual_seed(0))
    q, k, v = (2 * qkv).to(dtype).unflatten(-1, (3, 4, 32)).unbind(2)
    return [x.transpose(1, 2) for x in (q, k, v)]


def fused(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


uses_onednn = attention._use_onednn(torch.zeros(1))


@pytest.mark.skipif(not uses_onednn, reason="the fused kernel is used on this CPU")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("lengths", [None, (70, 41)])
def test_onednn_attention_matches_the_fused_kernel(dtype, bound, lengths):
    q, k, v = heads(dtype)
    mask = None
    if lengths:
        mask = (torch.arange(70) < torch.tensor(lengths)[:, None])[:, None, None]
    ours, exact = attention.attend(q, k, v, mask), fused(q.float(), k.float(), v.float(), mask)
    assert ours.dtype == dtype
    assert_close(ours.float(), exact, atol=bound)
    assert (ours.float() - exact).abs().mean() <= bound / 10


def test_scores_beyond_the_range_of_exp():
    q, k, v = heads(torch.float32)
    q, k = 10 * q, 10 * k
    assert ((q @ k.mT) / 32**0.5).max() > 1000
    assert_close(attention.attend(q, k, v, None), fused(q, k, v, None), atol=1e-2)


def test_training_uses_the_fused_kernel():
    q, k, v = (x.detach().requires_grad_() for x in heads(torch.float32))
    assert not attention._use_onednn(q)
    attention.attend(q, k, v, None).sum().backward()
    assert q.grad is not None


def test_other_dtypes_use_the_fused_kernel():
    q, k, v = heads(torch.float64)
    assert torch.equal(attention.attend(q, k, v, None), fused(q, k, v, None))
