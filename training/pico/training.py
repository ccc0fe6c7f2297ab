"""What the training of every part shares: a schedule by the clock, a checkpoint, a line of figures.

Knows optimizers and files. Knows nothing of what is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 200  # steps
EVERY = 200  # steps between two checkpoints
DECAY = 0.02  # of matrices


class Muon(torch.optim.Optimizer):
    """Momentum whose every update of a matrix is made orthogonal (Jordan et al. 2024).

    For the matrices inside a transformer; tables and vectors want Adam. The square blocks of a
    joined q/k/v matrix are made orthogonal one by one.
    """

    def __init__(self, matrices: Iterable[Tensor], rate: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002 - torch's signature
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(mean, group["momentum"])
                update = update.flatten(1)  # a convolution's kernel is part of what it sees
                rows, columns = update.shape
                blocks = update.chunk(3) if rows == 3 * columns else (update,)
                update = torch.cat([orthogonal(block) for block in blocks])
                scale = max(1, rows / len(blocks) / columns) ** 0.5
                matrix.mul_(1 - group["lr"] * DECAY)
                matrix.add_(update.view_as(matrix), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest orthogonal matrix, by five steps of a quintic Newton-Schulz iteration.

    Coefficients from Jordan's Muon: singular values end between 0.7 and 1.2.
    """
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return (x.T if tall else x).float()


def optimizers(
    net: nn.Module, rate: float, betas: tuple[float, float], inner: list[Tensor], inner_rate: float
) -> list[torch.optim.Optimizer]:
    """Adam for all but ``inner``, Muon for those; each group remembers its highest rate."""
    known = {id(matrix) for matrix in inner}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in known]
    matrices, others = ([p for p in rest if (p.dim() > 1) == flat] for flat in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    made: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, betas=betas)]
    if inner:
        made.append(Muon(inner, inner_rate))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def train(  # noqa: PLR0913 - each is a choice of one part's recipe
    name: str,
    net: nn.Module,
    loss_of: Callable[[np.random.Generator], Mapping[str, Tensor]],
    *,
    minutes: float,
    rate: float,
    out: Path,
    betas: tuple[float, float] = (0.9, 0.98),
    inner: Iterable[Tensor] = (),
    inner_rate: float = 0.006,
) -> None:
    """Train ``net`` and keep ``out/name.pt``; a second call goes on where the first one stopped.

    The rate rises for ``WARM_UP`` steps and falls with half a cosine over ``minutes``, those of
    earlier calls included.

    Args:
        loss_of: draws a batch; names to scalars, of which "loss" is minimised.
        minutes: in all.
        rate: the highest of AdamW.
        inner: matrices that Muon updates, at ``inner_rate``.
    """
    made = optimizers(net, rate, betas, list(inner), inner_rate)
    path, spent, step = out / f"{name}.pt", 0.0, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["model"])
        spent, step = saved["spent"], saved["step"]
        for optimizer, state in zip(made, saved["optimizer"], strict=True):
            optimizer.load_state_dict(state)
    rng, started = np.random.default_rng([17, step]), time.time() - spent
    sums: dict[str, float] = {}
    share = spent / (60 * minutes)
    while share < 1:
        share = min(1.0, (time.time() - started) / (60 * minutes))
        part = min(1, (step + 1) / WARM_UP) * (0.01 + 0.495 * (1 + math.cos(math.pi * share)))
        parts = loss_of(rng)
        for optimizer in made:
            optimizer.zero_grad()
        parts["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in made:
            for group in optimizer.param_groups:
                group["lr"] = part * group["peak"]
            optimizer.step()
        step += 1
        for key, value in parts.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if step % EVERY == 0 or share >= 1:
            count = step % EVERY or EVERY
            figures = " ".join(f"{key} {value / count:.3f}" for key, value in sums.items())
            print(f"{name} {step} {time.time() - started:.0f} s {figures}", flush=True)
            sums.clear()
            saved = {"model": net.state_dict(), "optimizer": [o.state_dict() for o in made]}
            saved |= {"spent": time.time() - started, "step": step}
            torch.save(saved, f"{path}.part")
            Path(f"{path}.part").replace(path)


def trained(name: str, net: nn.Module, out: Path) -> nn.Module:
    """``net`` with what ``train`` kept."""
    net.load_state_dict(torch.load(out / f"{name}.pt", weights_only=True)["model"])
    return net.eval().requires_grad_(False)
