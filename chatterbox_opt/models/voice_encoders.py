"""The encoders that turn reference audio into a Voice.

Responsible for upstream's three encoders and their inputs. Not responsible for files or storage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chatterbox_opt.audio.loudness import with_gain_to
from chatterbox_opt.config.model_config import SAMPLE_RATE, VoiceEncoderConfig
from chatterbox_opt.config.reference import ReferenceConfig
from chatterbox_opt.models.speech_tokenizer import build_tokenizer
from chatterbox_opt.utils.librosa_import import import_librosa
from chatterbox_opt.utils.upstream_import import import_upstream
from chatterbox_opt.utils.wave import Wave
from chatterbox_opt.voice import Voice

ENCODER_RATE = 16_000  # Hz, of all three encoders
FLOW_SECONDS = 10  # of the reference audio condition the flow (upstream DEC_COND_LEN)


class Encoders(nn.Module):
    """Upstream's encoders: S3 tokenizer, CAMPPlus x-vector, voice encoder (float32)."""

    def __init__(self, config: VoiceEncoderConfig, speaker: int, *, speaks: bool = True) -> None:
        """Build without weights.

        Args:
            speaker: size of the embedding for T3.
            speaks: False has no voice encoder: voices are for conversion only, and their
                embedding for T3 is zero.
        """
        super().__init__()
        self._speaker = speaker
        import_librosa()  # before upstream's files do
        self.tokenizer: Any = build_tokenizer(config)
        self.speaker_encoder: Any = _speaker_encoder(config)
        self.voice_encoder: Any = _voice_encoder(config, speaker) if speaks else None

    def encode(
        self, wave: Wave, prompt_tokens: int, reference: ReferenceConfig | None = None
    ) -> Voice:
        """Turn reference audio into a Voice as upstream's ``prepare_conditionals`` does (tts.py).

        Args:
            wave: float32 [n], mono, 24 kHz; beyond ten seconds (15 s of Turbo) only the voice
                encoder uses it.
            prompt_tokens: the maximum number of speech tokens in T3's prompt.
            reference: what the model takes of the recording; None is Chatterbox's.
        """
        from torchaudio.transforms import Resample

        reference = reference or ReferenceConfig()
        if reference.loudness is not None:
            wave = with_gain_to(wave, reference.loudness)
        with torch.inference_mode():
            wave_16k = import_librosa().resample(wave, orig_sr=SAMPLE_RATE, target_sr=ENCODER_RATE)
            head = torch.from_numpy(wave[: FLOW_SECONDS * SAMPLE_RATE])[None]
            mel = import_upstream("models.s3gen.utils.mel").mel_spectrogram(head).transpose(1, 2)
            head_16k = Resample(SAMPLE_RATE, ENCODER_RATE)(head)
            tokens, _ = self.tokenizer(head_16k)
            prompt, _ = self.tokenizer(
                [wave_16k[: reference.prompt_seconds * ENCODER_RATE]], max_len=prompt_tokens
            )
            voice = Voice(
                speaker=self._embedding(wave_16k),
                prompt=torch.atleast_2d(prompt),
                tokens=tokens[:, : mel.shape[1] // 2],
                mel=mel,
                xvector=self.speaker_encoder.inference(head_16k),
            )
        # cloned outside inference mode: a new voice must not differ from one of the voice store
        return Voice(**{name: tensor.clone() for name, tensor in voice.tensors().items()})

    def _embedding(self, wave: Wave) -> Tensor:
        """The speaker for T3, float32 [1, speaker], of float32 [n] at 16 kHz."""
        if self.voice_encoder is None:
            return torch.zeros(1, self._speaker)
        speaker = self.voice_encoder.embeds_from_wavs([wave], sample_rate=ENCODER_RATE)
        return torch.from_numpy(speaker.mean(axis=0, keepdims=True))


def _speaker_encoder(config: VoiceEncoderConfig) -> nn.Module:
    net: nn.Module = import_upstream("models.s3gen.xvector").CAMPPlus(
        memory_efficient=False,
        growth_rate=config.xvector_growth,
        bn_size=config.xvector_bottleneck,
        init_channels=config.xvector_init,
    )
    return net


def _voice_encoder(config: VoiceEncoderConfig, speaker: int) -> nn.Module:
    layers = import_upstream("models.voice_encoder.voice_encoder")
    upstream_config = layers.VoiceEncConfig()
    upstream_config.ve_hidden_size, upstream_config.speaker_embed_size = config.lstm, speaker
    net: nn.Module = layers.VoiceEncoder(upstream_config)
    return net
