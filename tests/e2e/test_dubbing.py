"""A film of 200 cues dubbed by the built-in model: times, length and the report."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from helpers.common import ROOT

from chatterbox_opt.audio.silence import MARGIN, sound_span
from chatterbox_opt.config.model_config import SAMPLE_RATE

pytestmark = pytest.mark.slow
CUES = 200
COMMAND = (sys.executable, "-m", "chatterbox_opt", "batch")
NEAR = round(0.010 * SAMPLE_RATE)  # samples
SENTENCES = ROOT / "training" / "pico" / "sentences" / "everyday.txt"


def film() -> list[tuple[float, float, str]]:
    """Cues with more, as much and less time than calm speech takes, with and without gaps."""
    texts = [line[:80] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    generator, cues, at = np.random.default_rng(5), [], 0.5
    for number in range(CUES):
        text = texts[number % len(texts)]
        room = max(len(text) / 15 * generator.choice([0.5, 0.8, 0.9, 1.0, 1.4]), 0.3)
        cues.append((round(at, 3), round(at + room, 3), text))
        at += room + generator.choice([0.0, 0.1, 0.5])
    return cues


def clock(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"


def speech(path) -> np.ndarray:
    """A file's samples from its first sound to its last."""
    wave, _ = soundfile.read(path)
    start, stop = sound_span([wave], margin=0)
    return wave[start:stop]


def test_every_cue_starts_at_its_time_and_the_report_is_true(tmp_path):
    cues = film()
    rows = (f"{n}\n{clock(a)} --> {clock(b)}\n{text}\n" for n, (a, b, text) in enumerate(cues, 1))
    (tmp_path / "film.srt").write_text("\n".join(rows))
    files = {}
    for overrun in ("overlap", "cut"):
        options = ("--timed", "--join", "dub.wav", "--out-dir", "dub", "--seed", "3", "--json")
        command = [*COMMAND, "film.srt", "--model", "pico", *options, "--overrun", overrun]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
        files |= {e["item"]["id"]: e["item"]["file"] for e in events if e["event"] == "item"}
        assert len(files) == CUES
        check(
            cues, [event for event in events if event["event"] == "cue"], files, overrun, tmp_path
        )


def check(cues, events, files, overrun, directory) -> None:
    """Compare the events with the cues, the items' files and the joined one."""
    fits = {event["id"]: event for event in events}
    assert len(fits) == CUES
    print({kind: sum(f["fit"] == kind for f in fits.values()) for kind in ("natural", "faster", "gap", overrun)})  # fmt: skip
    wave, _ = soundfile.read(directory / "dub.wav")
    last = max(fit["start"] + fit["seconds"] for fit in fits.values())
    length = max(round(cues[-1][1] * SAMPLE_RATE), round(last * SAMPLE_RATE) + MARGIN)
    assert len(wave) == pytest.approx(length, abs=24)
    expected = np.zeros(len(wave) + SAMPLE_RATE)
    for number, (start, end, _) in enumerate(cues, 1):
        fit, sound = fits[str(number)], speech(directory / "dub" / files[str(number)])
        heard = round(fit["seconds"] * SAMPLE_RATE)
        assert heard + round(fit["lost"] * SAMPLE_RATE) == pytest.approx(len(sound), abs=48)
        assert fit["over"] == pytest.approx(max(start + fit["seconds"] - end, 0), abs=0.002)
        assert fit["rate"] <= 1.25
        following = cues[number][0] if number < CUES else float("inf")
        if fit["fit"] in ("natural", "faster"):
            assert not fit["over"] and not fit["lost"]
        elif fit["fit"] == "gap":
            assert fit["rate"] == 1.25 or fit["over"] < 0.03
            assert start + fit["seconds"] <= following + 0.002
        else:
            assert fit["fit"] == overrun
            assert start + fit["seconds"] >= following - 0.002
        first = round(start * SAMPLE_RATE)
        expected[first : first + heard] += sound[:heard]
        assert best_lag(wave, sound[: min(heard, SAMPLE_RATE // 2)], first) <= NEAR
    # all but margins of 10 ms, and fades of 20 ms where something was cut
    apart = np.abs(wave - expected[: len(wave)]) > 0.01
    assert apart.sum() <= CUES * (2 * MARGIN + 480)


def best_lag(wave: np.ndarray, sound: np.ndarray, first: int) -> int:
    """Samples from ``first`` to the place that is most similar to a sound, within 50 ms."""
    reach = SAMPLE_RATE // 20
    window = np.pad(wave, (reach, reach))[first : first + len(sound) + 2 * reach]
    similarity = np.correlate(window, sound[: len(window) - 2 * reach], "valid")
    return abs(int(np.argmax(similarity)) - reach)
