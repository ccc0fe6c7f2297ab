"""The engine as a whole: calls are independent, seeds reproduce, pieces join to the whole."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from helpers.common import SAMPLE

from chatterbox_opt import Engine, Sampling
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.engine import probe, texts
from chatterbox_opt.engine.decoding import decode
from chatterbox_opt.errors import DeviceError, InputError, SilenceError, TextError
from chatterbox_opt.voices.store import VoiceStore

LONG = "The first sentence is here. And here comes another one, longer than the first. " * 5
SHORT = {"max_tokens": 30, "cfm_steps": 2}


def test_interleaved_calls_do_not_influence_one_another(engine):
    """Upstream's calls modify its conditionals; earlier forks keep the first call's parameters."""
    a = {"voice": engine.voice(), "sampling": Sampling(seed=1, **SHORT)}
    b = {
        "voice": engine.voice(SAMPLE),
        "sampling": Sampling(
            seed=2, temperature=1.3, cfg_weight=0.0, exaggeration=1.5, min_p=0.2, top_p=0.8,
            repetition_penalty=2.0, max_tokens=50,
        ),
    }  # fmt: skip
    first = engine.synthesize("Hello there.", **a).samples
    other = engine.synthesize("Something else entirely, and longer.", **b).samples
    again = engine.synthesize("Hello there.", **a).samples
    assert np.array_equal(first, again)
    assert not np.array_equal(first[: len(other)], other[: len(first)])
    assert np.array_equal(
        other, engine.synthesize("Something else entirely, and longer.", **b).samples
    )


def test_words_that_the_built_in_model_cannot_read_are_one_warning(caplog):
    config = ModelConfig(needs_text_normalization=True)
    with caplog.at_level(logging.WARNING, "chatterbox_opt"):
        chunks = texts.chunks("She said спасибо.\n\n谢谢 too.", config)
    assert [chunk.text for chunk in chunks] == ["She said.", "Too."]
    assert caplog.messages == ["2 words dropped, which this model cannot read: 'спасибо', '谢谢'"]


def test_a_voice_is_not_changed_by_use(engine):
    voice = engine.voice(SAMPLE)
    before = {name: tensor.clone() for name, tensor in voice.tensors().items()}
    engine.synthesize("Hello.", voice, Sampling(seed=1, exaggeration=2.0, **SHORT))
    for name, tensor in voice.tensors().items():
        assert torch.equal(tensor, before[name])


def test_a_closed_engine_raises_a_clear_error(tiny, tmp_path):
    engine = Engine.load(
        str(tiny), "dev", device="cpu", store=VoiceStore(tmp_path), watermark=False
    )
    voice = engine.voice()
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.synthesize("Hello.", voice)


def test_the_global_generator_is_unchanged(engine):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    engine.synthesize("Hello.", None, Sampling(seed=9, **SHORT))
    assert torch.equal(torch.rand(3), expected)


def test_two_engines_at_once_and_one_after_the_other(tiny, engine, tmp_path):
    sampling, store = Sampling(seed=4, **SHORT), VoiceStore(tmp_path)
    expected = engine.synthesize("Hello.", None, sampling).samples
    for _ in range(2):
        with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as second:
            assert np.array_equal(second.synthesize("Hello.", None, sampling).samples, expected)
            assert np.array_equal(engine.synthesize("Hello.", None, sampling).samples, expected)


def test_a_long_text_is_synthesized_in_chunks_that_join(engine):
    sampling = Sampling(seed=6, **SHORT)
    whole = engine.synthesize(LONG, None, sampling)
    joined = np.concatenate(list(engine.stream(LONG, None, sampling)))
    assert np.array_equal(whole.samples, joined)
    pieces = list(engine.pieces(LONG, None, sampling))
    assert len(pieces) == 2
    assert not pieces[0].samples[-4800:].any(), "0.2 s of silence between chunks"
    assert whole.tokens == sum(piece.tokens for piece in pieces)
    assert whole.samples.dtype == np.float32


def test_speech_tokens_are_those_of_the_synthesis(engine):
    sampling = Sampling(seed=6, **SHORT)
    tokens = engine.speech_tokens(LONG, None, sampling)
    assert tokens.dtype == torch.int64
    assert len(tokens) == engine.synthesize(LONG, None, sampling).tokens
    assert int(tokens.max()) < 6561


def test_without_a_seed_every_call_differs_and_can_be_repeated(engine):
    one = engine.synthesize("Hello there.", None, Sampling(**SHORT))
    two = engine.synthesize("Hello there.", None, Sampling(**SHORT))
    assert one.seed != two.seed
    again = engine.synthesize("Hello there.", None, Sampling(seed=one.seed, **SHORT))
    assert np.array_equal(one.samples, again.samples)


def test_progress_is_reported(engine):
    seen = []
    audio = engine.synthesize(LONG, None, Sampling(seed=6, **SHORT), seen.append)
    assert {(p.chunk, p.chunks) for p in seen} == {(0, 2), (1, 2)}
    assert max(p.tokens for p in seen) <= 30
    assert set(audio.seconds) == {"t3", "flow", "vocoder"}


def test_warming_up_changes_nothing(engine):
    sampling = Sampling(seed=5, max_tokens=20)
    before = engine.synthesize("Hello there.", sampling=sampling).samples
    engine.warm_up("Hi.", voice=engine.voice(SAMPLE))
    assert np.array_equal(engine.synthesize("Hello there.", sampling=sampling).samples, before)
    with pytest.raises(TextError):
        engine.warm_up("?!")


def test_empty_text(engine):
    with pytest.raises(TextError):
        engine.synthesize("...")


def test_a_model_without_a_voice_raises_a_clear_error(tiny, tmp_path):
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    (copy / "conds.pt").unlink()
    with (
        Engine.load(str(copy), "dev", store=VoiceStore(tmp_path), watermark=False) as engine,
        pytest.raises(InputError, match="--voice"),
    ):
        engine.synthesize("Hello.")


def test_a_missing_gpu_is_a_clear_error(tiny):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="no cuda device"):
        Engine.load(str(tiny), device="cuda")


def test_empty_output_is_retried_then_an_error(engine, monkeypatch, caplog):
    """A gap in the audio would be worse than an error, and a failed book worse than a retry."""
    asked = []

    def silent(batch):
        ended = step(batch)
        for sequence in ended:
            asked.append(sequence.seed)
            if len(asked) <= quiet:
                sequence.tokens = [6561, 7000]  # no audio
        return ended

    step = decode.DecodeBatch.step
    monkeypatch.setattr(decode.DecodeBatch, "step", silent)
    sampling = Sampling(seed=1, **SHORT)
    quiet = 2
    assert engine.synthesize("Hello.", None, sampling).tokens
    assert len(set(asked)) == len(asked) == 3, "each with another seed"
    assert caplog.text.count("(retrying)") == 2
    quiet = 100
    with pytest.raises(SilenceError, match="another --seed"):
        engine.synthesize("Hello.", None, sampling)


def test_the_watermark_is_on_by_default_and_can_be_disabled(tiny, engine, tmp_path):
    from chatterbox_opt.audio.watermark import Watermark

    sampling = Sampling(seed=4, max_tokens=60)
    with Engine.load(str(tiny), "dev", device="cpu", store=VoiceStore(tmp_path)) as marked:
        with_mark = marked.synthesize("Hello.", None, sampling).samples
    without = engine.synthesize("Hello.", None, sampling).samples
    watermark = Watermark()
    assert watermark.strength(with_mark) > 0.9
    assert watermark.strength(without) < 0.6
    assert np.abs(with_mark).max() <= 1.0


def test_half_precision_stages_synthesize(tiny, tmp_path):
    for dtype in ("bfloat16", "int8"):
        with Engine.load(
            str(tiny), "dev", device="cpu", overrides={"dtype": dtype}, store=VoiceStore(tmp_path),
            watermark=False,
        ) as half:  # fmt: skip
            assert half.plan.t3.storage == dtype or dtype in probe.probe("cpu").unsupported
            samples = half.synthesize("Hello.", None, Sampling(seed=1, **SHORT)).samples
            assert np.isfinite(samples).all()
