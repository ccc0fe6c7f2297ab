"""Trains pico's flow: codes and a speaker to mel.

Responsible for conditional flow matching. Not responsible for text or waveforms.

    python -m training.pico.train_flow --minutes 60

The recipe is CosyVoice 2's (the prompt is a random prefix of the utterance, a fifth of the rows are
unconditional for CFG), plus a loss on the encoder's mel estimate, with which so small an encoder
learns the phones much faster.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from chatterbox_opt.models.flow.model import Flow
from training.pico import teacher
from training.pico.codes import BASE
from training.pico.design import PICO_CONFIG
from training.pico.sound import mel_of, wave_of
from training.pico.training import train
from training.pico.utterances import HELD_OUT, WORK, Utterance, load

FRAMES = 3000  # per batch
UNCOND_SHARE = 0.2  # of rows without conditions (CFG)
MEAN, DEVIATION = -5.5, 2.6  # of the mel
MU_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class FlowExample:
    """A training example: codes int64 [T], mel float16 [2 T, 80], x-vector float32 [192]."""

    codes: Tensor
    mel: Tensor
    xvector: Tensor


def flow_example(one: Utterance) -> FlowExample:
    """Prepare an utterance that has audio."""
    assert one.speaker is not None
    mel = mel_of(wave_of(one)[None])[0].T
    tokens = torch.from_numpy(one.codes.astype(np.int64))
    xvector = teacher.x_vector(one.speaker, PICO_CONFIG.flow.xvector)
    return FlowExample(tokens, mel[: 2 * len(tokens)].half(), torch.from_numpy(xvector))


class FactorizedFlow(nn.Module):
    """The flow with per-phone terms added to its code embedding; ``fold`` merges them."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(PICO_CONFIG.flow).eval()  # eval: no dropout, it is small
        width = PICO_CONFIG.flow.encoder_width
        nn.init.normal_(self.flow.input_embedding.weight, std=0.01)
        self.shared = nn.Parameter(torch.randn(2, BASE, width) * 0.3)
        with torch.no_grad():
            self.flow.encoder_proj.bias.fill_(MEAN)
            self.flow.estimator.mel.bias.fill_(MEAN)
            self.flow.estimator.mel.weight.mul_(DEVIATION)

    def table(self) -> Tensor:
        """The code embedding [6561, width]."""
        sums = (self.shared[0][:, None] + self.shared[1][None]).flatten(0, 1)
        return self.flow.input_embedding.weight + sums

    def fold(self) -> Flow:
        """A plain flow with the per-phone terms merged into its embedding."""
        plain = Flow(PICO_CONFIG.flow)
        state = dict(self.flow.state_dict()) | {"input_embedding.weight": self.table().detach()}
        plain.load_state_dict(state)
        return plain.eval()

    def forward(self, batch: list[FlowExample], rng: np.random.Generator) -> dict[str, Tensor]:
        """Losses of examples of similar length, each cropped to the shortest."""
        flow, rows = self.flow, len(batch)
        length = min(len(s.codes) for s in batch)
        starts = [int(rng.integers(len(s.codes) - length + 1)) for s in batch]
        codes = torch.stack([s.codes[i : i + length] for s, i in zip(batch, starts, strict=True)])
        cut = zip(batch, starts, strict=True)
        mel = torch.stack([s.mel[2 * i : 2 * (i + length)] for s, i in cut]).float()
        xvector = torch.stack([s.xvector for s in batch])
        xvector = xvector + 0.15 * torch.randn_like(xvector)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            lengths = torch.full((rows,), length)
            hidden, _ = flow.encoder(F.embedding(codes, self.table()), lengths)
            mu = flow.encoder_proj(hidden).float()
            speaker = flow.spk_embed_affine_layer(F.normalize(xvector, dim=1)).float()
            prompt_frames = torch.from_numpy(rng.uniform(-0.2, 0.6, rows)).clamp(min=0) * 2 * length
            prompt = mel * (torch.arange(2 * length) < prompt_frames[:, None])[..., None]
            conditions = torch.cat((mu, speaker[:, None].expand_as(mu), prompt), dim=-1)
            conditional = torch.from_numpy(rng.random(rows) >= UNCOND_SHARE)[:, None, None]
            time = 1 - torch.cos(torch.rand(rows) * 0.5 * torch.pi)
            noise = torch.randn_like(mel)
            x = (1 - time)[:, None, None] * noise + time[:, None, None] * mel
            shifts = flow.estimator.time_shifts(time)[:, :, None]
            conditioning = flow.estimator.condition(conditions * conditional, None)
            velocity = flow.estimator(x, conditioning, shifts).float()
        cfm = ((velocity - (mel - noise)) / DEVIATION).pow(2).mean()
        estimate = ((mu - mel) / DEVIATION).abs().mean()
        return {"loss": cfm + MU_WEIGHT * estimate, "cfm": cfm, "mu": estimate}


def main(
    minutes: Annotated[
        float, typer.Option(help="Total training time of one core, earlier runs included.")
    ],
    out: Annotated[Path, typer.Option(help="Work folder.")] = WORK,
) -> None:
    """Train and save DIR/flow.pt."""
    logging.disable(logging.WARNING)  # upstream's mel warns of every sample above 1
    torch.manual_seed(0)
    usable = [flow_example(u) for u in load("sound", out)[HELD_OUT:] if len(u.codes) >= 20]
    usable.sort(key=lambda s: len(s.codes))
    net = FactorizedFlow()
    print(sum(p.numel() for p in net.flow.parameters()), "parameters", len(usable), "utterances")

    def loss_of(rng: np.random.Generator, _: float) -> dict[str, Tensor]:
        first = int(rng.integers(len(usable) - 64))
        rows = max(2, FRAMES // (2 * len(usable[first].codes)))
        picked = first + rng.integers(64, size=rows)  # sorted: similar lengths
        losses: dict[str, Tensor] = net([usable[i] for i in picked], rng)
        return losses

    inner = [
        module.weight
        for part in (net.flow.encoder.encoders, net.flow.encoder.up_encoders, net.flow.estimator)
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and name not in ("mel", "time_in", "time_out")
    ]
    train("flow", net, loss_of, minutes=minutes, rate=1.5e-3, out=out, inner=inner)


if __name__ == "__main__":
    typer.run(main)
