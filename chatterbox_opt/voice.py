"""A speaker's voice as an immutable value: what T3 and the flow are conditioned on.

Responsible for the tensors of a Voice and for upstream's conds.pt format. Not responsible for
computing one (models/voice_encoders.py) or storing it (voices/). Unlike upstream's
``prepare_conditioning``, which modifies its argument, no call changes a Voice.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.config.model_config import (
    GPT2,
    MEL_BINS,
    MEL_PER_TOKEN,
    SPEECH_TOKENS,
    TOKEN_RATE,
    ModelConfig,
)
from chatterbox_opt.errors import InputError, WeightsError, first_line
from chatterbox_opt.utils.arguments import number
from chatterbox_opt.utils.damage import DAMAGE_ERRORS

MIN_PROMPT_SECONDS = 0.5  # of the flow's prompt
MAX_BYTES = 16 << 20  # of a voice; 10 s have 0.2 MB


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Voice:
    """Conditioning of T3 and the flow by one speaker; float32 and int64 tensors on one device.

    Voices of the same content are equal and have the same hash, whatever device they are on.

    Attributes:
        speaker: [1, 256], embedding of the voice encoder, for T3.
        prompt: int64 [1, P], speech tokens of the recording's first six seconds (Turbo and Nano:
            15 s), for T3.
        tokens: int64 [1, N], speech tokens of its first ten seconds, for the flow.
        mel: [1, M, 80], mel spectrogram of the same ten seconds, for the flow; M is 2 N or 2 N + 1.
        xvector: [1, 192], CAMPPlus speaker embedding, for the flow.
    """

    speaker: Tensor
    prompt: Tensor
    tokens: Tensor
    mel: Tensor
    xvector: Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Voice):
            return NotImplemented
        return self is other or self.content() == other.content()

    def __hash__(self) -> int:
        return hash(self.content())

    def __repr__(self) -> str:
        sizes = (f"{name}={list(tensor.shape)}" for name, tensor in self.tensors().items())
        return f"Voice({self.content()[:12]}, {', '.join(sizes)}, device={self.speaker.device})"

    def content(self) -> str:
        """A hash of the tensors' types, shapes and bytes, in hex; takes under a millisecond."""
        digest = hashlib.blake2b(digest_size=20)
        for name, tensor in self.tensors().items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().flatten().contiguous()
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Voice:
        """The same voice on another device."""
        return Voice(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def shortened(self, seconds: float) -> Voice:
        """With only the last seconds of the flow's prompt; all of the rest stays.

        The flow renders the prompt again with every part of a stream, so a short one is heard
        sooner; the voice is a little less like the recording.

        Raises:
            InputError: less than ``MIN_PROMPT_SECONDS``.
        """
        seconds = number("seconds", seconds)
        if seconds < MIN_PROMPT_SECONDS:
            raise InputError(f"a prompt has {MIN_PROMPT_SECONDS:g} seconds or more, not {seconds}")
        count = min(round(seconds * TOKEN_RATE), self.tokens.shape[1])
        # from the front, tokens and frames together
        frames = self.mel.shape[1] - MEL_PER_TOKEN * (self.tokens.shape[1] - count)
        return replace(self, tokens=self.tokens[:, -count:], mel=self.mel[:, -frames:])

    def tensors(self) -> dict[str, Tensor]:
        """Name to tensor, for saving."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def from_tensors(tensors: Mapping[str, Tensor]) -> Voice:
    """Build a Voice from saved tensors.

    Raises:
        KeyError: a tensor is missing or unknown.
    """
    names = {f.name for f in fields(Voice)}
    if set(tensors) != names:
        raise KeyError(f"a saved voice has {sorted(names)}, this has {sorted(tensors)}")
    return Voice(**tensors)


def from_conditionals(path: Path) -> Voice:
    """Read the voice of a checkpoint (upstream ``Conditionals``, conds.pt).

    Raises:
        WeightsError: not a conds.pt file, it contains more than plain tensors, or tensors that are
            no voice.
    """
    try:
        _check_archive(path)
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        t3, gen = saved["t3"], saved["gen"]
        voice = Voice(
            speaker=_small(t3, "speaker_emb").float().reshape(1, -1),
            prompt=torch.atleast_2d(_small(t3, "cond_prompt_speech_tokens")).long(),
            tokens=torch.atleast_2d(_small(gen, "prompt_token")).long(),
            mel=_small(gen, "prompt_feat").float(),
            xvector=torch.atleast_2d(_small(gen, "embedding")).float(),
        )
        check(voice)
        return voice
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror or first_line(error)}): "
            "check the permissions, or get it again"
        ) from error
    except DAMAGE_ERRORS as error:
        raise WeightsError(
            f"{path} is damaged ({first_line(error)}): delete it and get it again"
        ) from error


def _check_archive(path: Path) -> None:
    """Raise ValueError for a file that torch.save did not write, or would be large in memory."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is empty, half downloaded, or not a file of torch.save")
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes when unpacked, a voice at most {MAX_BYTES:,}")


def _small(saved: Mapping[str, Any], name: str) -> Tensor:
    """A tensor of a file, before anything copies it: a few bytes may claim to be terabytes."""
    tensor = saved[name]
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise ValueError(f"{name} is not a tensor")
    if tensor.numel() > MAX_BYTES // 4 or tensor.is_floating_point() == ("token" in name):
        raise ValueError(f"{name} is {tensor.dtype} of shape {list(tensor.shape)}")
    return tensor


def check(voice: Voice, config: ModelConfig | None = None) -> None:
    """Check what every voice has, and that it is one for a model.

    Args:
        config: of the model; None leaves the sizes of embeddings open.

    Raises:
        ValueError: a tensor of another shape or dtype, token ids out of range, NaN or Inf.
    """
    sizes = {"speaker": config.t3.speaker, "xvector": config.flow.xvector} if config else {}
    for name, tensor in voice.tensors().items():
        dtype = torch.int64 if name in ("prompt", "tokens") else torch.float32
        dimensions = 3 if name == "mel" else 2
        fits = tensor.dtype == dtype and tensor.ndim == dimensions and tensor.shape[0] == 1
        if not fits or not tensor.numel() or tensor.shape[1] != sizes.get(name, tensor.shape[1]):
            raise ValueError(f"{name} is {tensor.dtype} of shape {list(tensor.shape)}")
        if dtype == torch.float32 and not tensor.isfinite().all():
            raise ValueError(f"{name} has NaN or Inf")
        if dtype == torch.int64 and not ((tensor >= 0) & (tensor < SPEECH_TOKENS)).all():
            raise ValueError(f"{name} has ids out of 0 to {SPEECH_TOKENS - 1}")
    tokens, frames = voice.tokens.shape[1], voice.mel.shape[1]
    if voice.mel.shape[2] != MEL_BINS or frames < MEL_PER_TOKEN * tokens:
        raise ValueError(f"mel has shape {list(voice.mel.shape)}, with {tokens} tokens")
    if config and voice.prompt.shape[1] > _most_prompt_tokens(config):
        raise ValueError(f"prompt has shape {list(voice.prompt.shape)}")


def _most_prompt_tokens(config: ModelConfig) -> int:
    """Llama's resampler takes as many as have a position; GPT-2 gets the prompt as it is."""
    return config.t3.prompt_tokens if config.t3.backbone == GPT2 else config.t3.speech_positions


def to_conditionals(voice: Voice) -> dict[str, Any]:
    """A voice in the format of upstream's conds.pt (``Conditionals.save``)."""
    return {
        "t3": {
            "speaker_emb": voice.speaker,
            "clap_emb": None,
            "cond_prompt_speech_tokens": voice.prompt,
            "cond_prompt_speech_emb": None,
            "emotion_adv": torch.full((1, 1, 1), 0.5),
        },
        "gen": {
            "prompt_token": voice.tokens,
            "prompt_token_len": torch.tensor([voice.tokens.shape[1]]),
            "prompt_feat": voice.mel,
            "prompt_feat_len": None,
            "embedding": voice.xvector,
        },
    }
