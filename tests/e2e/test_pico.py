"""The built-in model: it is complete, generates speech, and its voices differ.

Its output is transcribed if a recognizer is installed; test_quality.py measures more.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from helpers.common import SAMPLE
from typer.testing import CliRunner

from chatterbox_opt import Engine, Sampling
from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.cli.application import app
from chatterbox_opt.errors import VoiceError
from chatterbox_opt.eval.wer import word_error_rate
from chatterbox_opt.utils.upstream_import import import_upstream

SENTENCES = [
    "The weather is lovely this morning, so we walked to the market.",
    "Could you please close the window before you leave?",
    "My sister bought three red apples and a loaf of bread.",
    "He never drinks coffee after dinner.",
]


@pytest.fixture(scope="module")
def pico():
    with Engine.load("pico", "dev", device="cpu") as engine:
        yield engine


def test_files_are_complete_and_small():
    folder = registry.built_in("pico")
    files = [path for path in folder.rglob("*") if path.is_file()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:  # as in a wheel
        for path in files:
            wheel.write(path)
    assert packed.tell() <= 32e6
    assert {"README.md", *registry.FILES} <= {path.name for path in files}
    assert len(registry.shipped_voices("pico")) >= 4


@pytest.fixture(scope="module")
def speech(pico):
    """Audio of the sentences, and of three short ones."""
    sentences = [*SENTENCES, "Hello.", "Yes!", "No?"]
    return {s: pico.synthesize(s, None, Sampling(seed=i)) for i, s in enumerate(sentences)}


def test_speech_has_a_plausible_length_and_level(speech):
    for sentence, audio in speech.items():
        assert 0.3 < audio.duration < 0.9 * len(sentence.split()) + 2.5
        assert 0.05 < np.abs(audio.samples).max() < 1.0


def test_speech_is_intelligible(speech, recogniser):
    pairs = []
    for sentence in SENTENCES:
        audio = speech[sentence]
        pairs.append((sentence, recogniser.transcribe(audio.samples, audio.sample_rate)))
    # of 38 words; the model card has the real figure
    assert word_error_rate(pairs).rate <= 0.15, pairs


def test_numbers_are_normalized_to_words(pico):
    written = pico.speech_tokens("It costs $5.", None, Sampling(seed=1))
    normalized = pico.speech_tokens("It costs five dollars.", None, Sampling(seed=1))
    assert torch.equal(written, normalized)


def test_named_voices_differ_in_pitch(pico):
    """By the vocoder's own F0 predictor on the mel spectrogram of the output."""
    predict_f0 = loader.load_vocoder(pico.checkpoint).pitch
    pitches = {}
    for name in registry.shipped_voices("pico"):
        audio = pico.synthesize(
            "The morning was quiet.", pico.voice(name), Sampling(seed=3, cfm_steps=3)
        )
        mel = import_upstream("models.s3gen.utils.mel").mel_spectrogram(
            torch.from_numpy(audio.samples)[None]
        )
        f0 = predict_f0(mel)
        pitches[name] = f0[f0 > 60].median().item()
    assert sorted(pitches, key=pitches.__getitem__) == ["bruno", "emil", "dora", "ada", "clara"]
    assert pitches["bruno"] < 0.7 * pitches["clara"], pitches


def test_voice_of_a_recording(pico):
    voice = pico.voice(SAMPLE)
    assert voice.prompt.shape[1] <= pico.checkpoint.config.t3.prompt_tokens
    assert pico.synthesize("Good evening.", voice, Sampling(seed=1, cfm_steps=2)).duration > 0.3


@pytest.mark.slow
def test_exaggeration_makes_speech_faster(pico):
    slow, fast = (
        sum(
            len(pico.speech_tokens(SENTENCES[3], None, Sampling(seed=i, exaggeration=e)))
            for i in range(3)
        )
        for e in (0.1, 0.9)
    )
    assert fast < slow


def test_output_is_watermarked(pico):
    audio = pico.synthesize(SENTENCES[3], None, Sampling(seed=5, cfm_steps=2))
    assert Watermark().strength(audio.samples) > 0.9


def test_unknown_voice_error_lists_the_shipped_ones(tmp_path):
    out = tmp_path / "x.wav"
    args = ["synth", "Hi.", "--model", "pico", "--voice", "nobody", "-o", str(out)]
    with pytest.raises(VoiceError, match="ada, bruno"):
        CliRunner().invoke(app, args, catch_exceptions=False)
    assert not out.exists()
