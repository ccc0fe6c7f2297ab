"""The reference row of a benchmark: the installed chatterbox-tts, through its own functions.

Responsible for loading upstream's class of a kind of model and for timing its stages. Not
responsible for this engine (backends.py) or for rows (runner.py).

0.1.7 has no class for Nano and no file names for multilingual version 3 and the packs. Their
weights are loaded by the class of their kind, which is given the files under the names that it
looks for, and for Nano the size of its GPT-2. The multilingual class watches attentions, as
installed.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.bench.timing import BenchJob, StageTimer
from chatterbox_opt.checkpoints import families
from chatterbox_opt.checkpoints.families import CHATTERBOX, MULTILINGUAL_V2, TURBO_KIND, Kind
from chatterbox_opt.checkpoints.random_weights import gpt2_config
from chatterbox_opt.checkpoints.registry import Checkpoint, locate
from chatterbox_opt.config.model_config import GPT2, MULTILINGUAL_TEXT, SAMPLE_RATE, ModelConfig
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.upstream_backend import from_local, upstream_conditionals
from chatterbox_opt.errors import InputError
from chatterbox_opt.text.languages import DEFAULT
from chatterbox_opt.text.normalizers import normalize
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.voice import from_conditionals

NEVER = -1  # as stop token: no token that is drawn
GPT2_NAME = "GPT2_medium"  # what tts_turbo.py asks for


def like(config: ModelConfig) -> Kind:
    """The kind whose class upstream has."""
    if config.t3.backbone == GPT2:
        return TURBO_KIND
    return MULTILINGUAL_V2 if config.text == MULTILINGUAL_TEXT else CHATTERBOX


def check_size(checkpoint: Checkpoint) -> None:
    """Raise InputError if upstream's classes, with their shapes, cannot hold the checkpoint."""
    if dataclasses.replace(checkpoint.config, random_weights=False) != checkpoint.kind.config:
        raise InputError(
            f"plain Chatterbox cannot load '{checkpoint.name}', whose dimensions are not its own"
        )


@contextmanager
def renamed(checkpoint: Checkpoint, kind: Kind) -> Iterator[Path]:
    """A directory of links to a checkpoint's files, with the names of another kind."""
    names = dict(zip(checkpoint.kind.required, kind.required, strict=True))
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as scratch:
        for name in checkpoint.kind.files:
            source = checkpoint.path(name).absolute()
            if source.is_file():
                os.symlink(source, Path(scratch) / names.get(name, name))
        yield Path(scratch)


def load(checkpoint: Checkpoint, device: torch.device) -> Any:
    """Upstream's object of a checkpoint, by its own ``from_local``; it never stops by itself.

    Changes upstream's modules: for a process that loads nothing else.

    Raises:
        InputError: see ``check_size``.
    """
    check_size(checkpoint)
    import_librosa()  # before chatterbox does
    kind = like(checkpoint.config)
    with renamed(checkpoint, kind) as directory:
        model = from_local(_class(kind, checkpoint), directory, device)
    model.t3.hp.stop_speech_token = NEVER
    return model


def _class(kind: Kind, checkpoint: Checkpoint) -> Any:
    if kind is TURBO_KIND:
        from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
        from chatterbox.tts_turbo import ChatterboxTurboTTS

        LLAMA_CONFIGS[GPT2_NAME] = gpt2_config(checkpoint.config.t3, LLAMA_CONFIGS[GPT2_NAME])
        return ChatterboxTurboTTS
    if kind is CHATTERBOX:
        from chatterbox.tts import ChatterboxTTS

        return ChatterboxTTS
    from chatterbox import mtl_tts
    from chatterbox.models.tokenizers import tokenizer

    # of the checkpoint's file in place of a download; the segmenter is of Chinese only
    tokenizer.hf_hub_download = lambda **_: checkpoint.path(families.CANGJIE)
    tokenizer.ChineseCangjieConverter._init_segmenter = lambda _: None
    return mtl_tts.ChatterboxMultilingualTTS


class UpstreamTarget:
    """The installed chatterbox-tts as a ``BenchTarget``."""

    dtype = "float32"
    plan = "plain chatterbox-tts"
    warm_ups = 1

    def __init__(self, job: BenchJob, _: str) -> None:
        checkpoint = locate(job.model)
        self._job, self._device = job, torch.device(probe.probe(job.device).device)
        self._config = checkpoint.config
        self._tts = load(checkpoint, self._device)
        self._voice = from_conditionals(checkpoint.conditionals).to(self._device)

    def _ids(self) -> Tensor:
        """The sentence as upstream's ``generate`` reads it: int64 [rows, T]."""
        tokenizer, kind = self._tts.tokenizer, like(self._config)
        text = normalize(self._job.sentence, self._config.text)
        if kind is TURBO_KIND:
            ids: Tensor = tokenizer(text, return_tensors="pt").input_ids
            return ids.to(self._device)
        if kind is MULTILINGUAL_V2:
            ids = tokenizer.text_to_tokens(text, language_id=self._job.language or DEFAULT)
        else:
            ids = tokenizer.text_to_tokens(text)
        shapes = self._config.t3
        edges = ids.new_tensor([[shapes.start_text], [shapes.stop_text]])
        return torch.cat((edges[:1], ids, edges[1:]), dim=1).repeat(2, 1).to(self._device)

    def _t3(self, count: int) -> None:
        """Draw ``count`` tokens."""
        given = {
            "t3_cond": upstream_conditionals(self._voice, 0.5).t3,
            "text_tokens": self._ids(),
        }
        if self._config.t3.backbone == GPT2:  # counts from the second token
            self._tts.t3.inference_turbo(**given, max_gen_len=count - 1)
        else:
            self._tts.t3.inference(**given, max_new_tokens=count, top_p=1.0)

    def run(self, tokens: tuple[int, ...] = ()) -> dict[str, float]:
        """Generate the tokens once; seconds by stage. Decode is the time of all tokens minus that
        of one.

        Args:
            tokens: other than the job's.
        """
        clock, gen = StageTimer(self._device), upstream_conditionals(self._voice, 0.5).gen
        tokens = tokens or self._job.tokens
        self._t3(1)
        clock.lap("prefill")
        self._t3(len(tokens))
        clock.lap("decode")
        clock.seconds["decode"] -= clock.seconds["prefill"]
        codes = torch.tensor([*tokens, *self._config.silence], device=self._device)[None]
        mel = self._tts.s3gen.flow_inference(codes, ref_dict=gen, finalize=True)
        clock.lap("flow")
        wave, _ = self._tts.s3gen.hift_inference(mel)
        samples = wave[0].cpu().numpy()
        clock.lap("vocoder")
        self._tts.watermarker.apply_watermark(samples, sample_rate=SAMPLE_RATE)
        clock.lap("watermark")
        return clock.seconds

    def attention(self) -> list[str]:
        """Empty: chatterbox-tts is not profiled."""
        return []

    def quality(self) -> dict[str, Tensor]:
        """Empty: the tests show that float32 equals chatterbox-tts."""
        return {}
