"""A speaker's voice as an immutable value: what T3 and the flow are conditioned on.

Responsible for the tensors of a Voice and for upstream's conds.pt format. Not responsible for
computing one (models/voice_encoders.py) or storing it (voices/). Unlike upstream's
``prepare_conditioning``, which modifies its argument, no call changes a Voice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.errors import WeightsError

_MALFORMED = (EOFError, KeyError, TypeError, AttributeError, ValueError)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Voice:
    """Conditioning of T3 and the flow by one speaker; float32 and int64 tensors on one device.

    Voices of the same content are equal and have the same hash, whatever device they are on.

    Attributes:
        speaker: [1, 256], embedding of the voice encoder, for T3.
        prompt: int64 [1, P], speech tokens of the recording's first six seconds, for T3.
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
        WeightsError: not a conds.pt file, or it contains more than plain tensors.
    """
    import pickle

    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        t3, gen = saved["t3"], saved["gen"]
        return Voice(
            speaker=t3["speaker_emb"].float().reshape(1, -1),
            prompt=torch.atleast_2d(t3["cond_prompt_speech_tokens"]).long(),
            tokens=torch.atleast_2d(gen["prompt_token"]).long(),
            mel=gen["prompt_feat"].float(),
            xvector=torch.atleast_2d(gen["embedding"]).float(),
        )
    except (pickle.UnpicklingError, RuntimeError, *_MALFORMED) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is damaged ({reason}): delete it and get it again") from error


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
