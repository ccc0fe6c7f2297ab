"""Start-up: replacements of heavy imports are bit-exact, and the imports do not happen."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
from helpers.common import SAMPLE
from helpers.imports import imported_by

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.utils import upstream_import


@pytest.mark.parametrize("length", [1500, 24_000, 95_999, 96_001])
def test_the_watermark_equals_perths_bit_for_bit(length):
    import perth

    wave = audio_files.read_reference(SAMPLE)[5000 : 5000 + length]
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = perth.PerthImplicitWatermarker()
    marked = theirs.apply_watermark(wave, sample_rate=24_000)
    assert np.array_equal(Watermark().apply(wave), np.clip(marked, -1, 1))


def test_a_missing_or_broken_watermarker_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(upstream_import, "package_directory", lambda package: None)
    with pytest.raises(ChatterboxOptError, match="cannot be loaded.*--no-watermark"):
        Watermark()
    package = tmp_path / "perth"
    package.mkdir()
    monkeypatch.setattr(upstream_import, "package_directory", lambda _: package)
    monkeypatch.setattr(upstream_import, "import_layers", lambda *_: sys)
    with pytest.raises(ChatterboxOptError, match="cannot be loaded") as caught:
        Watermark()
    assert "\n" not in str(caught.value)


def test_the_window_equals_scipys():
    from scipy.signal import get_window

    for length in (16, 20, 1024):
        ours = upstream_import.hann_window("hann", length, fftbins=True)
        assert np.array_equal(ours, get_window("hann", length, fftbins=True))
    with pytest.raises(ValueError, match="Hann"):
        upstream_import.hann_window("blackman", 16, fftbins=True)


@pytest.mark.slow
def test_a_short_text_imports_none_of_these(tmp_path):
    """The built-in model with its watermark: these imports would take five seconds."""
    arguments = ["synth", "It is 5 o.", "--model", "pico", "-q", "--max-tokens", "9"]
    loaded = imported_by([*arguments, "--seed", "1", "-o", "x.wav"], tmp_path)
    assert "soxr" in loaded, "the watermark was applied"
    assert not loaded & {
        "librosa",
        "scipy.signal",
        "scipy.stats",
        "perth",
        "pkg_resources",
        "sympy",
        "torchaudio",
        "torch._dynamo",
        "s3tokenizer",
    }
