"""Training loop of all parts: schedule by processor time, checkpoints, logging.

Responsible for optimizers and files. Not responsible for what is trained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 200  # steps
EVERY = 200  # steps between two checkpoints
DECAY = 0.02  # weight decay of matrices
# draws a batch, of what share of the time has passed; returns scalars, of which "loss" is minimized
LossOf = Callable[[np.random.Generator, float], Mapping[str, Tensor]]


class Muon(torch.optim.Optimizer):
    """Muon: momentum with orthogonalized updates (Jordan et al. 2024).

    For the weight matrices of a transformer; embeddings and vectors use Adam. The square blocks of
    a fused q/k/v matrix are orthogonalized separately.
    """

    def __init__(self, matrices: Iterable[Tensor], rate: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002 - torch's signature
        """Update all matrices with a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(mean, group["momentum"])
                update = update.flatten(1)  # a convolution as a matrix over its receptive field
                rows, columns = update.shape
                blocks = update.chunk(3) if rows == 3 * columns else (update,)
                update = torch.cat([orthogonal(block) for block in blocks])
                scale = max(1, rows / len(blocks) / columns) ** 0.5
                matrix.mul_(1 - group["lr"] * DECAY)
                matrix.add_(update.view_as(matrix), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the nearest orthogonal matrix by five quintic Newton-Schulz iterations.

    Coefficients from Jordan's Muon: singular values converge to between 0.7 and 1.2.
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
    """Muon for ``inner``, AdamW for the rest; each group stores its peak learning rate."""
    known = {id(matrix) for matrix in inner}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in known]
    matrices, others = ([p for p in rest if (p.dim() > 1) == flat] for flat in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    result: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, rate, betas=betas)]
    if inner:
        result.append(Muon(inner, inner_rate))
    for optimizer in result:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return result


def gradients(
    loss_of: LossOf, rngs: list[np.random.Generator], progress: float, pool: ThreadPoolExecutor
) -> dict[str, float]:
    """Gradients of the mean loss over one batch per generator, drawn at the same time.

    Returns:
        means of all that ``loss_of`` returns.
    """

    def one(rng: np.random.Generator) -> dict[str, float]:
        losses = loss_of(rng, progress)
        (losses["loss"] / len(rngs)).backward()
        return {key: float(value.detach()) for key, value in losses.items()}

    return means(list(pool.map(one, rngs)))


def means(found: list[dict[str, float]]) -> dict[str, float]:
    """Means of the losses that the last has; one that began later counts from there."""
    return {key: fmean(one[key] for one in found if key in one) for key in found[-1]}


def train(  # noqa: PLR0913 - hyperparameters
    name: str,
    net: nn.Module,
    loss_of: LossOf,
    *,
    minutes: float,
    rate: float,
    out: Path,
    betas: tuple[float, float] = (0.9, 0.98),
    inner: Iterable[Tensor] = (),
    inner_rate: float = 0.006,
    workers: int = 1,
) -> None:
    """Train ``net`` and save ``out/name.pt``; a second call resumes.

    The learning rate is warmed up for ``WARM_UP`` steps and decays by half a cosine over
    ``minutes``, those of earlier calls included. They are of processor time, summed over threads:
    other work on the machine, or a pause, costs no training.

    Args:
        loss_of: every worker calls it, at the same time as the others.
        minutes: in total, of one core.
        rate: peak learning rate of AdamW.
        inner: matrices that Muon updates, with peak rate ``inner_rate``.
        workers: threads, each of which draws a batch of its own for each step. For small layers
            that gains more than as many threads for each operator.
    """
    all_optimizers = optimizers(net, rate, betas, list(inner), inner_rate)
    path, spent, step = out / f"{name}.pt", 0.0, 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        net.load_state_dict(saved["model"])
        spent, step = saved["spent"], saved["step"]
        for optimizer, state in zip(all_optimizers, saved["optimizer"], strict=True):
            optimizer.load_state_dict(state)
    rngs = np.random.default_rng([17, step]).spawn(workers)
    threads = max(1, torch.get_num_threads() // workers)
    pool = ThreadPoolExecutor(workers, "train", torch.set_num_threads, (threads,))
    started = time.process_time() - spent
    recent: list[dict[str, float]] = []
    progress = spent / (60 * minutes)
    while progress < 1:
        progress = min(1.0, (time.process_time() - started) / (60 * minutes))
        scale = min(1, (step + 1) / WARM_UP) * (0.01 + 0.495 * (1 + math.cos(math.pi * progress)))
        for optimizer in all_optimizers:
            optimizer.zero_grad()
        recent.append(gradients(loss_of, rngs, progress, pool))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in all_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = scale * group["peak"]
            optimizer.step()
        step += 1
        if step % EVERY == 0 or progress >= 1:
            spent = time.process_time() - started
            figures = " ".join(f"{key} {value:.3f}" for key, value in means(recent).items())
            print(f"{name} {step} {spent:.0f} s {figures}", flush=True)
            recent.clear()
            saved = {
                "model": net.state_dict(),
                "optimizer": [o.state_dict() for o in all_optimizers],
            }
            saved |= {"spent": spent, "step": step}
            torch.save(saved, f"{path}.part")
            Path(f"{path}.part").replace(path)
    pool.shutdown()


def trained(name: str, net: nn.Module, out: Path) -> nn.Module:
    """Load ``train``'s checkpoint into ``net``."""
    net.load_state_dict(torch.load(out / f"{name}.pt", weights_only=True)["model"])
    return net.eval().requires_grad_(False)
