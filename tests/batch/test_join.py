"""Silence at the ends of files, loudness, and pauses of a joined file, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.fake_engine import run_batch, tasks_of

from chatterbox_opt import Result, Sampling
from chatterbox_opt.audio import containers, loudness, silence
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.job_file import Item, ReadOptions
from chatterbox_opt.batch.joining import mastering
from chatterbox_opt.batch.joining.join import Pauses, join
from chatterbox_opt.batch.joining.mastering import Master
from chatterbox_opt.batch.resuming import prepare
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Piece
from chatterbox_opt.script.reader import script_of

RNG = np.random.default_rng(0)


def speech(seconds: float, level: float = 0.1) -> np.ndarray:
    """Noise that is as loud throughout as speech is on average."""
    return (RNG.standard_normal(round(seconds * SAMPLE_RATE)) * level).clip(-0.9, 0.9).astype("f4")


def quiet(seconds: float) -> np.ndarray:
    return speech(seconds, 1e-5)


def speak(requests):
    """0.1 s of silence, a second of speech a word, 0.4 s of silence."""
    for request in requests:
        words = len(request.text.split())
        wave = np.concatenate([quiet(0.1), speech(words), quiet(0.4)])
        yield Result(request.id, 0, (Piece(wave, request.text, 1, {"t3": 0.5}),))


def sound_of(path: Path) -> np.ndarray:
    return np.concatenate(list(containers.read_blocks(path, SAMPLE_RATE)))


def silences(wave: np.ndarray) -> list[float]:
    """Seconds of each silence between sounds, by frames of 5 ms."""
    frame = SAMPLE_RATE // 200
    loud = np.abs(wave[: len(wave) // frame * frame]).reshape(-1, frame).max(axis=1) > 0.01
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    return [
        round((b - a) / 200, 2) for a, b in zip(edges, edges[1:], strict=False) if not loud[a + 1]
    ]


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3", "opus", "m4a"])
def test_the_pause_asked_for_is_the_pause_heard(tmp_path, format):
    content = b"One.\n\nTwo two.\n\n...\n\nThree.\n\n* * *\n\nFour.\n\n...\n\n...\n\n...\n\n...\n\nFive.\n\nChapter 2\n"
    items = job_file.read("a.txt", content, Sampling(seed=1)).items
    done = run_batch(tmp_path, tasks_of([i.text for i in items]), speak).entries
    target = tmp_path / f"book.{format}"
    made = join(items, done, tmp_path, str(target), Pauses(0.5, 1.5))
    joined = sound_of(target)
    heard = silences(joined)
    assert heard == pytest.approx([0.5, 1.0, 1.5, 1.5, 1.5], abs=0.04)
    assert len(joined) / SAMPLE_RATE == pytest.approx(made.seconds, abs=0.06)
    begun = [
        np.abs(joined[round((start + 0.1) * SAMPLE_RATE) :][:480]).max() for start in made.starts
    ]
    before = [
        np.abs(joined[max(round((start + 0.1) * SAMPLE_RATE) - 960, 0) :][:480]).max()
        for start in made.starts[1:]
    ]
    assert min(begun) > 0.01 > max(before), "a file's sound begins 0.1 s after the file"
    join(items, done, tmp_path, str(target), Pauses(0.5, 1.5, keep_silence=True))
    assert silences(sound_of(target)) == pytest.approx([1, 1.5, 2, 2, 2], abs=0.04)


def speak_with_pauses(requests):
    """As ``speak``; silence that the markup asks for is digital, in place of the file's own."""
    for request in requests:
        parts = []
        for span in script_of(request).spans:
            lead = quiet(0.1) if not parts else quiet(0)
            parts.append(lead if span.pause is None else np.zeros(round(span.pause * SAMPLE_RATE)))
            parts.append(speech(len(span.text.split())))
        parts.append(quiet(0.4) if len(parts[-1]) else quiet(0))
        wave = np.concatenate(parts).astype("f4")
        yield Result(request.id, 0, (Piece(wave, request.text, 1, {"t3": 0.5}),))


def marked(directory: Path, text: str) -> tuple[list[Item], dict]:
    """Items with markup, and their entries."""
    items = job_file.read(
        "a.txt", text.encode(), Sampling(seed=1), options=ReadOptions(markup=True)
    ).items
    items = prepare(items, [f"{item.id}.wav" for item in items], "m", lambda voice: "v")
    return items, run_batch(directory, items, speak_with_pauses).entries


@pytest.mark.parametrize("keep_silence", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. [pause:4s]\nTwo.", [4]),
        ("One.\n[pause:4s] Two.", [4]),
        ("One.\n[pause:4s]\nTwo.", [4]),
        ("One. [pause:1s]\n[pause:2s]\n[pause:3s] Two.", [6]),
        ("One. [pause:200ms]\nTwo [pause:2s] words.", [0.2, 2]),
        ("One. [pause:2s]\n\n* * *\n\nTwo.\nThree.", [2, 0.5]),
        ("<speak>One.<break time='3s'/></speak>\nTwo.", [3]),
    ],
)
def test_pauses_at_the_edges_of_texts_are_heard_as_long_as_asked_for(
    tmp_path, text, expected, keep_silence
):
    items, done = marked(tmp_path, text)
    target = tmp_path / "book.wav"
    join(items, done, tmp_path, str(target), Pauses(0.5, 1.5, keep_silence))
    own = 0.5 if keep_silence else 0.04  # a file's own silence, where nothing was asked for
    heard = silences(sound_of(target))
    assert all(a - 0.01 <= h <= a + own for h, a in zip(heard, expected, strict=True)), heard


def test_pauses_at_the_ends_of_the_job_are_heard(tmp_path):
    items, done = marked(
        tmp_path, "[pause:1s]\n[pause:2s] One.\n[pause:1s] Two [pause:3s]\n[pause:1s]"
    )
    target = tmp_path / "book.wav"
    for keep_silence in (False, True):
        made = join(items, done, tmp_path, str(target), Pauses(0.5, 1.5, keep_silence))
        loud = np.flatnonzero(np.abs(sound_of(target)) > 0.01) / SAMPLE_RATE
        assert loud[0] == pytest.approx(3, abs=0.02)
        assert made.seconds - loud[-1] == pytest.approx(4, abs=0.02)
    join(items, done, tmp_path, str(target), Pauses(), master=Master.AUDIOBOOK)
    loud = np.flatnonzero(np.abs(sound_of(target)) > 0.05) / SAMPLE_RATE
    assert loud[0] == pytest.approx(3, abs=0.02), "longer than the room tone that a shop asks for"


@pytest.mark.parametrize("size", [1, 7, 479, 480, 481, 5000])
def test_digital_silence_is_filled_across_blocks(size):
    hum, least = lambda n: np.full(n, 0.5, np.float32), mastering.DIGITAL
    lengths = [least, least - 1, 3 * least, 1, least + 1]
    parts = [part for n in lengths for part in (np.zeros(n, "f4"), np.full(9, 0.1, "f4"))]
    for wave in (
        np.concatenate(parts),
        np.concatenate(parts[1:-1]),
        np.concatenate(parts[:4])[:-9],
    ):
        blocks = [wave[i : i + size] for i in range(0, len(wave), size)]
        found = np.concatenate(list(mastering.filled(blocks, hum)))
        assert len(found) == len(wave)
        kept = 1 + (least - 1) if len(wave) > 4 * least else least - 1
        assert (found == 0).sum() == kept and not (found[wave != 0] == 0.5).any()


def test_a_mastered_file_has_no_digital_silence_within_its_items(tmp_path):
    items, done = marked(tmp_path, "One [pause:1s] two.\nThree.")
    join(
        items,
        done,
        tmp_path,
        str(target := tmp_path / "book.wav"),
        Pauses(),
        master=Master.AUDIOBOOK,
    )
    zero = np.concatenate([[False], sound_of(target) == 0, [False]])
    edges = np.flatnonzero(np.diff(zero))
    assert max(edges[1::2] - edges[::2], default=0) < mastering.DIGITAL


def test_the_span_of_sound():
    wave = np.concatenate([quiet(0.25), speech(0.5), quiet(0.1), speech(0.2, 0.003), quiet(0.7)])
    blocks = lambda: [wave[i : i + 2400] for i in range(0, len(wave), 2400)]
    start, stop = silence.sound_span(blocks())
    assert start == pytest.approx(0.24 * SAMPLE_RATE, abs=2 * silence.FRAME)
    assert stop == pytest.approx(1.06 * SAMPLE_RATE, abs=2 * silence.FRAME), (
        "a quiet word at the end"
    )
    assert silence.sound_span([np.zeros(1000, np.float32)]) == (0, 1000)
    assert silence.sound_span([]) == (0, 0)


@pytest.mark.parametrize("seconds", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("level", [0.003, 0.05])
def test_files_have_the_loudness_asked_for(tmp_path, seconds, level):
    def faint(requests):
        for request in requests:
            wave = speech(seconds, level)
            yield Result(request.id, 0, (Piece(wave, "x", 1, {"t3": 0.5}),))

    summary = run_batch(tmp_path, tasks_of(["One."]), faint, loudness=-23.0)
    wave, _ = soundfile.read(tmp_path / "1.wav", dtype="float32")
    assert loudness.measured((wave,)).loudness() == pytest.approx(-23.0, abs=0.1)
    assert not summary.entries["1"].faults


def test_loudness_limits_single_peaks_and_reports_what_it_cannot_reach(tmp_path):
    def peaked(requests):
        for request in requests:
            wave = speech(2.0, 0.01)
            wave[5000::12000] = 0.9  # the gain that the rest needs would take these to 6
            yield Result(request.id, 0, (Piece(wave, "x", 1, {"t3": 0.5}),))

    summary = run_batch(tmp_path, tasks_of(["One."]), peaked, loudness=-18.0)
    wave, _ = soundfile.read(tmp_path / "1.wav", dtype="float32")
    assert loudness.measured((wave,)).loudness() == pytest.approx(-18.0, abs=0.1)
    assert np.abs(wave).max() <= loudness.MAX_PEAK + 1e-3
    assert not summary.entries["1"].faults

    def square(requests):
        for request in requests:
            wave = np.zeros(48000, np.float32)
            wave[::240] = 0.9  # nothing but peaks
            yield Result(request.id, 0, (Piece(wave, "x", 1, {"t3": 0.5}),))

    summary = run_batch(tmp_path, tasks_of(["Two."]), square, loudness=-9.0)
    [fault] = summary.entries["1"].faults
    assert "LU quieter than --loudness" in fault
    silent = np.zeros(9999, np.float32)
    assert loudness.at_loudness(silent, -18.0)[0] is silent
    for target in (0.0, -60.0, float("nan")):
        with pytest.raises(InputError, match="--loudness"):
            loudness.check_target(target)


def test_another_loudness_is_another_file(tmp_path):
    items = job_file.read("a.txt", b"One.", Sampling(seed=1)).items
    hashes = set()
    for target in (None, -18.0, -16.0):
        [item] = prepare(items, ["1.wav"], "m", lambda voice: "v", target)
        hashes.add(item.settings_hash)
    assert len(hashes) == 3
