"""Packs the trained parts into the package: upstream's files and named voices, in float16.

Responsible for names and files. Not responsible for training.

    python -m training.pico.pack

The package converts upstream's names to its own modules (checkpoints/loader.py); here the same
conversion is inverted, by running it on the index of every value.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.checkpoints.reader import COMPUTED_BUFFERS
from chatterbox_opt.checkpoints.registry import VOICES
from chatterbox_opt.config.config_file import write_config
from chatterbox_opt.models.flow import convert as flow_convert
from chatterbox_opt.models.t3.convert import t3_from_upstream
from chatterbox_opt.models.voice_encoders import Encoders
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.voice import Voice, to_conditionals
from training.pico import train_flow, train_t3, train_vocoder
from training.pico.design import PICO_CONFIG, tokenizer
from training.pico.sound import voice_of
from training.pico.teacher import Speaker, Teacher
from training.pico.training import trained
from training.pico.utterances import WORK, utterance

Tensors = Mapping[str, Tensor]
PACKAGE = registry.built_in("pico")
PROMPT = "The morning was bright, and everyone walked slowly down to the old harbour."
SPEAKERS = {  # the first is the model's own voice
    "ada": Speaker(0.0, 1.0, 0.0),
    "bruno": Speaker(-0.65, 0.89, -0.1),
    "clara": Speaker(0.32, 1.09, 0.1),
    "dora": Speaker(-0.15, 0.92, 0.1),
    "emil": Speaker(-0.42, 1.03, -0.1),
}


def invert_conversion(
    convert: Callable[[Tensors], Tensors], template: Tensors, ours: Tensors
) -> Tensors:
    """Find the tensors that ``convert`` maps to ``ours``; tensors that it drops are zero.

    Args:
        convert: renames, joins, reshapes and permutes, but changes no value.
        template: names and shapes of the result.
    """
    sizes = [tensor.numel() for tensor in template.values()]
    indices = torch.arange(1, sum(sizes) + 1, dtype=torch.float64).split(sizes)
    shaped = {n: p.view(t.shape) for (n, t), p in zip(template.items(), indices, strict=True)}
    flat = torch.zeros(sum(sizes))
    for name, index in convert(shaped).items():
        flat[index.long() - 1] = ours[name].detach().float()
    parts = zip(template.items(), flat.split(sizes), strict=True)
    return {name: part.view(tensor.shape) for (name, tensor), part in parts}


def flow_to_ours(theirs: Tensors) -> Tensors:
    """Convert upstream's flow tensors to ours, as ``loader.load_flow`` does."""
    prefix = "decoder.estimator."
    inner = {n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)}
    estimator = flow_convert.estimator_from_upstream(inner, PICO_CONFIG.flow)
    outer = {n: t for n, t in theirs.items() if not n.startswith("decoder.")}
    return outer | {f"estimator.{n}": t for n, t in estimator.items()}


def to_float16(tensors: Tensors) -> dict[str, Tensor]:
    """Contiguous copies with floats in float16.

    Raises:
        OverflowError: a value exceeds the range of float16.
    """
    result = {n: t.detach().half() if t.is_floating_point() else t for n, t in tensors.items()}
    for name, tensor in result.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise OverflowError(f"{name} does not fit float16")
    return {name: tensor.contiguous().clone() for name, tensor in result.items()}


def files(out: Path) -> dict[str, dict[str, Tensor]]:
    """The three weight files, from the training checkpoints."""
    t3 = train_t3.FactorizedT3(train_t3.checkpoint_codes(out))
    trained("t3", t3, out)
    decoder = invert_conversion(
        lambda theirs: t3_from_upstream(theirs, PICO_CONFIG.t3, torch.float64).state_dict(),
        random_weights.t3_template(PICO_CONFIG.t3),
        t3.fold().state_dict(),
    )
    flow_net = train_flow.FactorizedFlow()
    trained("flow", flow_net, out)
    flow = invert_conversion(
        flow_to_ours,
        random_weights.upstream_flow(PICO_CONFIG.flow).state_dict(),
        flow_net.fold().state_dict(),
    )
    encoders = Encoders(PICO_CONFIG.voice, PICO_CONFIG.t3.speaker)
    hift = train_vocoder.TrainableHiFT()
    parts: dict[str, Tensors] = {
        "flow": flow,
        "mel2wav": _state("vocoder", hift, out, inner=hift.net),
        "tokenizer": _state("tokenizer", encoders.tokenizer, out),
        "speaker_encoder": _state("xvector", encoders.speaker_encoder, out),
    }
    s3gen = {f"{part}.{name}": t for part, state in parts.items() for name, t in state.items()}
    return {
        registry.T3: to_float16(decoder),
        registry.S3GEN: to_float16({n: t for n, t in s3gen.items() if n not in COMPUTED_BUFFERS}),
        registry.VOICE_ENCODER: to_float16(_state("voice_encoder", encoders.voice_encoder, out)),
    }


def _state(name: str, net: nn.Module, out: Path, inner: nn.Module | None = None) -> Tensors:
    trained(name, net, out)
    return (inner or net).state_dict()


def named_voice(teacher_model: Teacher, speaker: Speaker) -> Voice:
    """The voice of a speaker, from the teacher's synthesis of ``PROMPT``."""
    one = utterance(teacher_model, PROMPT, np.random.default_rng(0), sound=True, speaker=speaker)
    assert one is not None
    return voice_of(one)


def main(
    out: Annotated[Path, typer.Option(help="Work folder of the training.")] = WORK,
    target: Annotated[Path, typer.Option(help="Output folder of the model.")] = PACKAGE,
) -> None:
    """Write the model's folder; its README (the model card) is kept."""
    target.mkdir(parents=True, exist_ok=True)
    for name, tensors in files(out).items():
        with atomic_write(target / name) as part:
            save_file(tensors, part)
    text = json.dumps(tokenizer(), ensure_ascii=False)
    (target / registry.TOKENIZER).write_text(text, encoding="utf-8")
    write_config(target, PICO_CONFIG)
    shutil.rmtree(target / VOICES, ignore_errors=True)
    (target / VOICES).mkdir()
    teacher_model = Teacher()
    voices = {name: named_voice(teacher_model, speaker) for name, speaker in SPEAKERS.items()}
    for name, voice in voices.items():
        save_file(to_float16(voice.tensors()), target / VOICES / f"{name}.safetensors")
    torch.save(to_conditionals(next(iter(voices.values()))), target / registry.CONDITIONALS)
    total = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    print(f"{target}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
