"""Voices as Turbo and Nano want them: over 5 s, at -27 LUFS, 15 s for T3; against upstream's own."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import soundfile
import torch
from helpers.common import SAMPLE, assert_close
from typer.testing import CliRunner

from chatterbox_opt.audio import loudness
from chatterbox_opt.audio.files import check_reference, decode_reference
from chatterbox_opt.checkpoints import digests, registry
from chatterbox_opt.cli.application import app
from chatterbox_opt.config.model_config import GPT2, NANO, TINY, TURBO, ModelConfig
from chatterbox_opt.config.reference import ReferenceConfig, turbo_reference
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, VoiceError, WeightsError
from chatterbox_opt.models.voice_encoders import Encoders
from chatterbox_opt.voice import check, from_conditionals, to_conditionals
from chatterbox_opt.voices import library as voice_library
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import content_key

GPT2_T3 = dataclasses.replace(TINY.t3, backbone=GPT2, positions=600, prompt_tokens=375)
CONFIG = dataclasses.replace(TINY, t3=GPT2_T3)


def of_turbo(tiny) -> registry.Checkpoint:
    """The tiny checkpoint's encoders, as a model of Turbo's kind."""
    checkpoint = registry.Checkpoint("tiny-turbo", tiny, CONFIG, "")
    encoder, s3gen = checkpoint.voice_encoder, checkpoint.s3gen
    identity = digests.of_voices(CONFIG, encoder, s3gen)
    return dataclasses.replace(checkpoint, voice_identity=identity)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """17 s of speech, louder than -27 LUFS, at 44.1 kHz."""
    wave, _ = librosa.load(SAMPLE, sr=44_100)
    path = tmp_path_factory.mktemp("recordings") / "long.wav"
    soundfile.write(path, np.resize(wave, 17 * 44_100) * 0.9, 44_100)
    return path


def seconds_of(path, seconds: float):
    wave, _ = librosa.load(SAMPLE, sr=24_000)
    soundfile.write(path, np.resize(wave, round(seconds * 24_000)), 24_000)
    return path


@pytest.fixture(scope="module")
def conditionals(upstream, recording):
    """What upstream's ``prepare_conditionals`` of Turbo makes, with tiny encoders."""
    from chatterbox.tts_turbo import ChatterboxTurboTTS

    turbo = object.__new__(ChatterboxTurboTTS)
    turbo.t3 = SimpleNamespace(hp=SimpleNamespace(speech_cond_prompt_len=375))
    turbo.s3gen, turbo.ve, turbo.device = upstream.s3gen, upstream.ve, "cpu"
    turbo.prepare_conditionals(str(recording), exaggeration=0.0)
    return turbo.conds


def test_a_voice_equals_upstreams_conditionals(tiny, store, recording, conditionals):
    voice = VoiceLibrary(of_turbo(tiny), store).voice(recording)
    t3, gen = conditionals.t3, conditionals.gen
    expected = {
        "speaker": t3.speaker_emb,
        "mel": gen["prompt_feat"],
        "xvector": gen["embedding"],
    }
    for name, tensor in expected.items():
        found = getattr(voice, name)
        print(f"{name}: max difference {float((found - tensor).abs().max()):.2g}")
        assert_close(found, tensor, atol=1e-5)
    assert voice.prompt.shape == (1, 375)
    assert torch.equal(voice.prompt, t3.cond_prompt_speech_tokens)
    assert torch.equal(voice.tokens, gen["prompt_token"])


def test_loudness_is_upstreams_gain(recording, conditionals):
    from chatterbox.tts_turbo import ChatterboxTurboTTS

    wave, rate = librosa.load(recording, sr=24_000)
    expected = ChatterboxTurboTTS.norm_loudness(None, wave, rate)
    found = loudness.with_gain_to(wave, -27.0)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-7
    assert loudness.measured((found,)).loudness() == pytest.approx(-27, abs=0.01)
    assert abs(loudness.measured((wave,)).loudness() + 27) > 1, "the recording had another loudness"
    silence = np.zeros(24_000, np.float32)
    assert loudness.with_gain_to(silence, -27.0) is silence


def test_the_kinds_of_a_recording_are_two_entries(tiny, store, recording):
    plain, turbo = registry.locate(str(tiny)), of_turbo(tiny)
    voices = [VoiceLibrary(one, store).voice(recording) for one in (plain, turbo)]
    assert [voice.prompt.shape[1] for voice in voices] == [150, 375]
    assert not torch.equal(voices[0].mel, voices[1].mel)
    assert store.computed() == 2
    for checkpoint, voice in zip((plain, turbo), voices, strict=True):
        found, _ = store.load(content_key(recording, checkpoint.voice_identity))
        assert found == voice


def test_keys_of_chatterboxs_voices_are_those_of_earlier_versions(tiny):
    """Digest of ve.safetensors and samples of s3gen.safetensors, and nothing else."""
    import hashlib

    digest = hashlib.blake2b((tiny / registry.VOICE_ENCODER).read_bytes(), digest_size=16)
    digests._add_file(digest, tiny / registry.S3GEN)
    assert registry.locate(str(tiny)).voice_identity == digest.hexdigest()
    assert ReferenceConfig().kind == "" != turbo_reference().kind
    assert TURBO.reference == NANO.reference == turbo_reference()
    assert ModelConfig().reference == TINY.reference == ReferenceConfig()


@pytest.mark.parametrize(
    ("seconds", "accepted"), [(1.5, False), (5.0, False), (5.01, True), (16.0, True)]
)
def test_a_short_recording_is_refused_with_the_remedy(tiny, store, tmp_path, seconds, accepted):
    path = seconds_of(tmp_path / "short.wav", seconds)
    check_reference(path)
    decode_reference(path)
    if accepted:
        assert VoiceLibrary(of_turbo(tiny), store).voice(path).prompt.shape[1] <= 375
        return
    message = r"lasts .* this model needs more than 5 s of speech: use a longer recording"
    with pytest.raises(VoiceError, match=message) as caught:
        VoiceLibrary(of_turbo(tiny), store).voice(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert store.computed() == 0


@pytest.mark.parametrize("command", ["synth", "batch", "rows"])
@pytest.mark.parametrize("model", ["turbo", "nano", "chatterbox"])
def test_a_short_recording_is_refused_when_it_is_named(model, command, tmp_path, monkeypatch):
    """By the model's name, before anything is loaded or written; other models take it."""
    monkeypatch.chdir(tmp_path)
    for name in ("load", "resolve"):
        monkeypatch.setattr(EngineSpec, name, lambda *_: next(iter([])))
    seconds_of(tmp_path / "short.wav", 4.9)
    seconds_of(tmp_path / "long.wav", 5.1)
    (tmp_path / "a.csv").write_text(
        "text,voice\nHi.,\nHi.,long.wav\nHi.,absent.wav\nHi.,short.wav\n"
    )
    (tmp_path / "a.txt").write_text("Hi.")
    arguments = {
        "synth": ["synth", "Hi.", "--voice", "short.wav"],
        "batch": ["batch", "a.txt", "--out-dir", "out", "--voice", "short.wav"],
        "rows": ["batch", "a.csv", "--out-dir", "out"],
    }
    result = CliRunner().invoke(app, [*arguments[command], "--model", model])
    if model == "chatterbox":
        assert isinstance(result.exception, StopIteration), "it was to be loaded"
        return
    assert isinstance(result.exception, InputError), result.output
    prefix = "row 5: " if command == "rows" else ""
    assert str(result.exception).startswith(f"{prefix}'short.wav' lasts 4.9 s, and this model")
    assert not (tmp_path / "out").exists()


def test_a_header_that_declares_less_than_there_is_refuses_no_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EngineSpec, "resolve", lambda *_: next(iter([])))
    content = bytearray(seconds_of(tmp_path / "a.wav", 6).read_bytes())
    content[40:44] = (4096).to_bytes(4, "little")  # of the data chunk: a first buffer
    (tmp_path / "a.wav").write_bytes(content)
    assert soundfile.info("a.wav").duration < 0.1
    (tmp_path / "a.csv").write_text("text,voice\nHi.,a.wav\n")
    arguments = ["batch", "a.csv", "--out-dir", "out", "--model", "turbo"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, StopIteration)


def test_no_encoder_is_loaded_for_a_recording_that_is_refused(tiny, store, tmp_path, monkeypatch):
    monkeypatch.setattr(voice_library, "load_encoders", lambda _: pytest.fail("were loaded"))
    with pytest.raises(VoiceError):
        VoiceLibrary(of_turbo(tiny), store).voice(seconds_of(tmp_path / "a.wav", 2))


def test_without_a_reference_config_the_encoders_are_chatterboxs(tiny):
    encoders = Encoders(TINY.voice, TINY.t3.speaker).eval()
    wave = decode_reference(SAMPLE).wave
    explicit = encoders.encode(wave, 150, ReferenceConfig())
    assert explicit == encoders.encode(wave, 150)


@pytest.mark.parametrize(("tokens", "fits"), [(1, True), (375, True), (376, False)])
def test_conds_pt_of_turbo(tiny, store, tmp_path, conditionals, tokens, fits):
    """As upstream saves it: an ``emotion_adv`` that nothing reads, a prompt of up to 375 tokens."""
    conditionals.t3.cond_prompt_speech_tokens = torch.arange(tokens)[None]
    conditionals.save(tmp_path / registry.CONDITIONALS)
    for name in (registry.S3GEN, registry.VOICE_ENCODER):
        shutil.copy(tiny / name, tmp_path)
    saved = torch.load(tmp_path / registry.CONDITIONALS, weights_only=True)
    assert saved["t3"]["emotion_adv"].shape == (1, 1, 1)
    library = VoiceLibrary(dataclasses.replace(of_turbo(tiny), directory=tmp_path), store)
    if not fits:
        with pytest.raises(WeightsError, match=r"prompt has shape \[1, 376\]"):
            library.voice()
        return
    voice = library.voice()
    assert voice.prompt.shape == (1, tokens)
    check(voice, CONFIG)
    torch.save(to_conditionals(voice), tmp_path / "again.pt")
    assert from_conditionals(tmp_path / "again.pt") == voice
