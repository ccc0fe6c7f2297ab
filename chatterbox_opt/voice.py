"""Who says it: a reference recording turned, once, into a value.

Knows the encoders that read a recording and the tensors they give. Knows nothing of text, of
devices in use, or where voices are kept (see voices/store.py). A Voice is never changed by a call:
upstream's ``prepare_conditioning`` writes into the conditioning it is given, ours does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatterbox_opt.errors import WeightsError

_MALFORMED = (EOFError, KeyError, TypeError, AttributeError, ValueError)


@dataclass(frozen=True, slots=True)
class Voice:
    """What the stages need of a speaker; float32 and int64 tensors, on one device.

    Attributes:
        speaker: [1, 256], voice encoder's embedding, for T3.
        prompt: int64 [1, P], speech tokens of the first six seconds, for T3.
        tokens: int64 [1, N], speech tokens of the first ten seconds, for the flow.
        mel: [1, M, 80], their mel spectrogram, for the flow; M is 2 N or 2 N + 1.
        xvector: [1, 192], CAMPPlus speaker embedding, for the flow.
    """

    speaker: Tensor
    prompt: Tensor
    tokens: Tensor
    mel: Tensor
    xvector: Tensor

    def to(self, device: torch.device | str) -> Voice:
        """The same voice on another device."""
        return Voice(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Name to tensor, for saving."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def from_tensors(tensors: Mapping[str, Tensor]) -> Voice:
    """Build a Voice from saved tensors.

    Raises:
        KeyError: one is missing or unknown.
    """
    names = {f.name for f in fields(Voice)}
    if set(tensors) != names:
        raise KeyError(f"a saved voice has {sorted(names)}, this has {sorted(tensors)}")
    return Voice(**tensors)


def from_conditionals(path: Path) -> Voice:
    """Read the voice that comes with a checkpoint (upstream ``Conditionals``, conds.pt).

    Raises:
        WeightsError: not such a file, or it holds anything but plain tensors.
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
