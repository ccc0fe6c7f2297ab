"""Accuracy level 1 after T3: voice, mel, wave and audio equal upstream's for the same noise."""

from __future__ import annotations

import pytest
import torch
from helpers.common import SAMPLE, assert_close
from helpers.texts import TEXTS
from helpers.upstream_reference import WHOLE_ATOL, Unmarked

from chatterbox_opt import Sampling
from chatterbox_opt.checkpoints import loader
from chatterbox_opt.kernels.cpu.conv import ops as conv_ops
from chatterbox_opt.models.vocoder.model import source
from chatterbox_opt.models.vocoder.packed import PackedGenerator

ATOL = 1e-4


@pytest.fixture(scope="module")
def upstream_voice(upstream):
    """Conditionals that upstream computes from the sample; the model's own are restored."""
    own = upstream.conds
    upstream.prepare_conditionals(str(SAMPLE), exaggeration=0.5)
    cloned, upstream.conds = upstream.conds, own
    return cloned


def test_voice_equals_upstreams_conditionals(engine, upstream_voice):
    voice = engine.voice(SAMPLE)
    t3, gen = upstream_voice.t3, upstream_voice.gen
    assert_close(voice.speaker, t3.speaker_emb, atol=1e-6)
    assert torch.equal(voice.prompt, t3.cond_prompt_speech_tokens)
    assert torch.equal(voice.tokens, gen["prompt_token"])
    assert_close(voice.mel, gen["prompt_feat"], atol=1e-6)
    assert_close(voice.xvector, gen["embedding"], atol=1e-5)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_mel_equals_upstreams_for_the_same_noise(engine, upstream, upstream_voice, own, count):
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randint(0, 6561, (1, count), generator=generator)
    voice = engine.voice(None if own else SAMPLE)
    gen = upstream.conds.gen if own else upstream_voice.gen
    torch.manual_seed(5)
    expected = upstream.s3gen.flow_inference(tokens, ref_dict=dict(gen), finalize=True)
    with engine.pipeline.placement("flow") as flow:
        (mel,) = flow([tokens[0]], [voice], [torch.Generator().manual_seed(5)])
    assert_close(mel[None], expected, atol=ATOL)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("frames", [2, 30, 121])
def test_wave_equals_upstreams_for_the_same_noise(engine, upstream, frames, plain):
    """By the compiled convolutions of this CPU, if it can, and by PyTorch's."""
    mel = torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(frames)) * 2 - 5
    torch.manual_seed(9)
    expected = upstream.s3gen.hift_inference(mel)[0].clone()
    expected[:, : len(upstream.s3gen.trim_fade)] *= upstream.s3gen.trim_fade
    with engine.pipeline.placement("vocoder") as vocoder:
        assert isinstance(vocoder.generator, PackedGenerator) or not conv_ops.supports()
        if plain:
            vocoder = loader.load_vocoder(engine.checkpoint)
        (wave,) = vocoder([mel[0]], [torch.Generator().manual_seed(9)])
    assert_close(wave, expected[0], atol=ATOL)


def test_source_has_voiced_and_unvoiced_parts(engine):
    """Guards the test above, which must cover both branches of the source."""
    f0 = torch.cat((torch.zeros(1, 10), torch.full((1, 10), 200.0)), dim=1)
    with engine.pipeline.placement("vocoder") as vocoder:
        (signal,) = source(vocoder.merge, f0, torch.Generator().manual_seed(0))
    assert signal[:4800].std() < signal[4800:].std()


@pytest.mark.parametrize("text", [*TEXTS[:2], pytest.param(TEXTS[2], marks=pytest.mark.slow)])
def test_synthesis_equals_upstreams_for_the_same_seed(engine, upstream, text):
    """End to end against generate(), both without watermark."""
    watermarker, upstream.watermarker = upstream.watermarker, Unmarked()
    try:
        torch.manual_seed(21)
        expected = upstream.generate(text, cfg_weight=0.7, exaggeration=0.5)[0]
    finally:
        upstream.watermarker = watermarker
    audio = engine.synthesize(text, None, Sampling(seed=21, cfg_weight=0.7))
    assert_close(torch.from_numpy(audio.samples), expected, atol=WHOLE_ATOL)
