"""What the training of every part shares: a schedule by the clock, a checkpoint, a line of figures.

Knows optimizers and files. Knows nothing of what is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 200  # steps
EVERY = 200  # steps between two checkpoints


def train(
    name: str,
    net: nn.Module,
    loss_of: Callable[[np.random.Generator], Mapping[str, Tensor]],
    *,
    minutes: float,
    rate: float,
    out: Path,
    betas: tuple[float, float] = (0.9, 0.98),
) -> None:
    """Train ``net`` and keep ``out/name.pt``; a second call goes on where the first one stopped.

    The rate rises for ``WARM_UP`` steps and falls with half a cosine over ``minutes``, those of
    earlier calls included.

    Args:
        loss_of: draws a batch; names to scalars, of which "loss" is minimised.
        minutes: in all.
        rate: the highest of AdamW.
    """
    matrices = [p for p in net.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, rate, betas=betas)
    path, spent, step = out / f"{name}.pt", 0.0, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, step = saved["spent"], saved["step"]
    rng, started = np.random.default_rng([17, step]), time.time() - spent
    sums: dict[str, float] = {}
    share = spent / (60 * minutes)
    while share < 1:
        share = min(1.0, (time.time() - started) / (60 * minutes))
        now = rate * min(1, (step + 1) / WARM_UP) * (0.01 + 0.495 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = now
        parts = loss_of(rng)
        optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        for key, value in parts.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if step % EVERY == 0 or share >= 1:
            figures = " ".join(f"{key} {value / EVERY:.3f}" for key, value in sums.items())
            print(f"{name} {step} {time.time() - started:.0f} s {figures}", flush=True)
            sums.clear()
            saved = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(saved | {"spent": time.time() - started, "step": step}, f"{path}.part")
            Path(f"{path}.part").replace(path)


def trained(name: str, net: nn.Module, out: Path) -> nn.Module:
    """``net`` with what ``train`` kept."""
    net.load_state_dict(torch.load(out / f"{name}.pt", weights_only=True)["model"])
    return net.eval().requires_grad_(False)
