"""The encoders that turn a reference recording into a Voice."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chatterbox_opt.config.model_config import SAMPLE_RATE, SPEECH_TOKENS, VoiceEncoderConfig
from chatterbox_opt.request import Wave
from chatterbox_opt.utils.upstream_import import import_upstream
from chatterbox_opt.voice import Voice

ENCODER_RATE = 16_000  # Hz, of all three encoders
FLOW_SECONDS = 10  # of the recording condition the flow (upstream DEC_COND_LEN)
T3_SECONDS = 6  # of the recording condition T3 (upstream ENC_COND_LEN)


class Encoders(nn.Module):
    """Upstream's three readers of a recording: S3 tokenizer, CAMPPlus, voice encoder (float32)."""

    def __init__(self, shape: VoiceEncoderConfig, speaker: int) -> None:
        super().__init__()
        self.tokenizer: Any = _tokenizer(shape)
        self.speaker_encoder: Any = _speaker_encoder(shape)
        self.voice_encoder: Any = _voice_encoder(shape, speaker)

    def encode(self, wave: Wave, prompt_tokens: int) -> Voice:
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
            mel = import_upstream("models.s3gen.utils.mel").mel_spectrogram(head).transpose(1, 2)
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


def _tokenizer(shape: VoiceEncoderConfig) -> Any:
    from s3tokenizer.model_v2 import AudioEncoderV2, FSQVectorQuantization

    net: Any = import_upstream("models.s3tokenizer.s3tokenizer").S3Tokenizer()
    if shape.tokenizer_width != net.config.n_audio_state:
        # upstream's class takes no shapes: give it smaller parts of the same classes
        width, heads = shape.tokenizer_width, shape.tokenizer_heads
        layers, mels = shape.tokenizer_layers, net.config.n_mels
        net.encoder = AudioEncoderV2(mels, width, heads, layers, 2, net.config.use_sdpa)
        net.quantizer = FSQVectorQuantization(width, SPEECH_TOKENS)
    return net


def _speaker_encoder(shape: VoiceEncoderConfig) -> nn.Module:
    net: nn.Module = import_upstream("models.s3gen.xvector").CAMPPlus(
        memory_efficient=False,
        growth_rate=shape.xvector_growth,
        bn_size=shape.xvector_bottleneck,
        init_channels=shape.xvector_init,
    )
    return net


def _voice_encoder(shape: VoiceEncoderConfig, speaker: int) -> nn.Module:
    layers = import_upstream("models.voice_encoder.voice_encoder")
    config = layers.VoiceEncConfig()
    config.ve_hidden_size, config.speaker_embed_size = shape.lstm, speaker
    net: nn.Module = layers.VoiceEncoder(config)
    return net
