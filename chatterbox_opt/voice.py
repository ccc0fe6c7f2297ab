"""Who says it: a reference recording turned, once, into a value.

Knows the encoders that read a recording and the tensors they give. Knows nothing of text, of
devices in use, or where voices are kept (see voice_store.py). A Voice is never changed by a call:
upstream's ``prepare_conditioning`` writes into the conditioning it is given, ours does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from chatterbox_opt.errors import WeightsError
from chatterbox_opt.lean import upstream
from chatterbox_opt.shapes import SAMPLE_RATE, SPEECH_TOKENS, VoiceShape

ENCODER_RATE = 16_000  # Hz, of all three encoders
FLOW_SECONDS = 10  # of the recording condition the flow (upstream DEC_COND_LEN)
T3_SECONDS = 6  # of the recording condition T3 (upstream ENC_COND_LEN)


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


class Encoders(nn.Module):
    """Upstream's three readers of a recording: S3 tokenizer, CAMPPlus, voice encoder (float32)."""

    def __init__(self, shape: VoiceShape, speaker: int) -> None:
        super().__init__()
        self.tokenizer: Any = _tokenizer(shape)
        self.speaker_encoder: Any = _speaker_encoder(shape)
        self.voice_encoder: Any = _voice_encoder(shape, speaker)

    def encode(self, wave: npt.NDArray[np.float32], prompt_tokens: int) -> Voice:
        """Turn a recording into a Voice as upstream's ``prepare_conditionals`` does (tts.py).

        Args:
            wave: float32 [n], mono, 24 kHz; what lies past ten seconds only reaches the voice
                encoder.
            prompt_tokens: the most speech tokens that T3 takes as its prompt.
        """
        import librosa
        from torchaudio.transforms import Resample

        with torch.inference_mode():
            narrow = librosa.resample(wave, orig_sr=SAMPLE_RATE, target_sr=ENCODER_RATE)
            head = torch.from_numpy(wave[: FLOW_SECONDS * SAMPLE_RATE])[None]
            mel = upstream("models.s3gen.utils.mel").mel_spectrogram(head).transpose(1, 2)
            narrow_head = Resample(SAMPLE_RATE, ENCODER_RATE)(head)
            tokens, _ = self.tokenizer(narrow_head)
            prompt, _ = self.tokenizer([narrow[: T3_SECONDS * ENCODER_RATE]], max_len=prompt_tokens)
            speaker = self.voice_encoder.embeds_from_wavs([narrow], sample_rate=ENCODER_RATE)
            voice = Voice(
                speaker=torch.from_numpy(speaker.mean(axis=0, keepdims=True)),
                prompt=torch.atleast_2d(prompt),
                tokens=tokens[:, : mel.shape[1] // 2],
                mel=mel,
                xvector=self.speaker_encoder.inference(narrow_head),
            )
        # outside inference mode: a voice must work anywhere, from the cache or not
        return Voice(**{name: tensor.clone() for name, tensor in voice.tensors().items()})


def _tokenizer(shape: VoiceShape) -> Any:
    from s3tokenizer.model_v2 import AudioEncoderV2, FSQVectorQuantization

    net: Any = upstream("models.s3tokenizer.s3tokenizer").S3Tokenizer()
    if shape.tokenizer_width != net.config.n_audio_state:
        # upstream's class takes no shapes: give it smaller parts of the same classes
        width, heads = shape.tokenizer_width, shape.tokenizer_heads
        layers, mels = shape.tokenizer_layers, net.config.n_mels
        net.encoder = AudioEncoderV2(mels, width, heads, layers, 2, net.config.use_sdpa)
        net.quantizer = FSQVectorQuantization(width, SPEECH_TOKENS)
    return net


def _speaker_encoder(shape: VoiceShape) -> nn.Module:
    net: nn.Module = upstream("models.s3gen.xvector").CAMPPlus(
        memory_efficient=False,
        growth_rate=shape.xvector_growth,
        bn_size=shape.xvector_bottleneck,
        init_channels=shape.xvector_init,
    )
    return net


def _voice_encoder(shape: VoiceShape, speaker: int) -> nn.Module:
    layers = upstream("models.voice_encoder.voice_encoder")
    config = layers.VoiceEncConfig()
    config.ve_hidden_size, config.speaker_embed_size = shape.lstm, speaker
    net: nn.Module = layers.VoiceEncoder(config)
    return net
