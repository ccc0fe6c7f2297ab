"""How close a narrow T3 is to float32's: the same choice (top-1) and KL divergence of its logits."""

from __future__ import annotations

import pytest
import torch
from helpers.t3 import sequence_of
from torch import Tensor

from chatterbox_opt.checkpoints import loader
from chatterbox_opt.engine.decoding.decode import EagerBackend, decode
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.sampling import Sampling

UNSUPPORTED = weight_layout.unsupported_dtypes()
# layout and dtype of the narrow steps of a CPU
NARROW = {
    "int8": ("int8", torch.float32),
    "int4": ("int4", torch.float32),
    "bfloat16": ("" if "bfloat16" in UNSUPPORTED else "bfloat16", torch.bfloat16),
}


def random_prompt(t3: T3, number: int) -> Prompt:
    """A text of its own length, in a voice of its own."""
    config, generator = t3.config, torch.Generator().manual_seed(number)
    return Prompt(
        torch.randint(config.text_vocab, (9 + 7 * number,), generator=generator),
        torch.rand(1, config.speaker, generator=generator),
        torch.randint(6561, (1, config.prompt_tokens), generator=generator),
    )


def forced_log_probs(t3: T3, prompts: int, count: int, prompt=random_prompt) -> Tensor:
    """Log-probabilities [prompts * count * rows, V] of steps over forced tokens.

    Args:
        prompt: makes the prompt of a number.
    """
    backend, logits = EagerBackend(), []
    for number in range(prompts):
        slots = backend.slots(t3, 1, 2 if t3.config.has_cfg else 1)
        generator = torch.Generator().manual_seed(number)
        forced = tuple(torch.randint(6561, (count,), generator=generator).tolist())
        request = sequence_of(
            prompt(t3, number),
            Sampling(max_tokens=count + 1),
            forced_tokens=forced,
            on_progress=lambda *_, slots=slots: logits.append(slots.logits.float().clone()),
        )
        [ended] = decode(t3, slots, [request], backend)
        assert ended.error is None and tuple(ended.tokens) == forced
    return torch.log_softmax(torch.cat(logits), dim=-1)


def check_narrow(checkpoint, exact: Tensor, narrow: str, bounds, *sizes: int) -> None:
    """Load a checkpoint's T3 in a narrow precision; print its closeness, and compare with bounds.

    Args:
        exact: ``forced_log_probs`` in float32.
        bounds: least top-1, greatest KL.
        sizes: of ``forced_log_probs``.
    """
    if narrow in UNSUPPORTED and narrow != "bfloat16":
        pytest.skip(UNSUPPORTED[narrow])
    layout, dtype = NARROW[narrow]
    log_probs = forced_log_probs(loader.load_t3(checkpoint, dtype, layout), *sizes)
    check_close(narrow, log_probs, exact, bounds)


def check_close(name: str, log_probs: Tensor, exact: Tensor, bounds) -> None:
    """Print how close log-probabilities are to those of float32, and compare with bounds."""
    top1 = (log_probs.argmax(-1) == exact.argmax(-1)).float().mean().item()
    kl = (exact.exp() * (exact - log_probs)).sum(-1).mean().item()
    print(f"{name}: top-1 {top1:.3f}, KL {kl:.2e}, {len(exact)} steps")
    assert top1 >= bounds[0] and 0 < kl <= bounds[1], (top1, kl)
