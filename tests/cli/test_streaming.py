"""``synth --stream`` and ``--play``: streams, arriving text, playback on a fake device, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from chatterbox_opt.audio import player
from chatterbox_opt.audio.streaming import wav_header
from chatterbox_opt.cli.synth import streaming
from chatterbox_opt.cli.synth.streaming import StreamOptions, open_sinks
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.errors import InputError

COMMAND = [sys.executable, "-m", "chatterbox_opt", "synth"]
SHORT = ["--max-tokens", "60", "--seed", "3", "--no-watermark", "--no-check", "--cfm-steps", "2"]
TEXT = "A sentence that is heard while it is made."


def test_a_stream_is_the_sound_of_the_file(tiny, tmp_path, run_forked):
    args = ["synth", TEXT, "--model", str(tiny), *SHORT, "--stream", "-o"]
    filed = run_forked(*args, "out.wav", "--json", cwd=tmp_path)
    assert filed.returncode == 0, filed.stderr.decode()
    assert "First audio after" in filed.stderr.decode()
    samples, rate = soundfile.read(tmp_path / "out.wav", dtype="int16")
    assert rate == 24_000
    result = json.loads(filed.stdout)
    assert len(samples) == result["tokens"] * 960
    assert 0 < result["first_audio_seconds"] < result["synthesis_seconds"]
    assert result["chunks"] == 1
    raw = run_forked(*args, "-", "--format", "pcm", cwd=tmp_path)
    assert raw.stdout == samples.astype("<i2").tobytes()
    wav = run_forked(*args, "-", cwd=tmp_path)
    assert wav.stdout == wav_header() + raw.stdout
    whole = run_forked("synth", TEXT, "--model", str(tiny), *SHORT, "-o", "whole.wav", cwd=tmp_path)
    assert whole.returncode == 0
    assert len(soundfile.read(tmp_path / "whole.wav")[0]) == len(samples), "the same tokens"


def test_chunks_are_streamed_bit_for_bit(tiny, tmp_path, run_forked):
    args = ["synth", f"{TEXT}\n\nMore.", "--model", str(tiny), *SHORT, "-o"]
    stream = ["--stream", "--latency", "chunk", "--format", "pcm"]
    raw = run_forked(*args, "-", *stream, cwd=tmp_path)
    assert run_forked(*args, "a.wav", cwd=tmp_path).returncode == 0
    samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert raw.stdout == samples.astype("<i2").tobytes()


def test_arriving_text_is_heard_before_it_ends(tiny, tmp_path):
    """The writer waits for the sound of its first sentence."""
    args = ["-", "--model", str(tiny), *SHORT, "--stream", "--format", "pcm", "-o", "-"]
    with subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:  # fmt: skip
        process.stdin.write(b"The first sentence is there. The sec")
        process.stdin.flush()
        first = os.read(process.stdout.fileno(), 1 << 20)
        assert len(first) > 1000
        process.stdin.write("ond one: caf\N{LATIN SMALL LETTER E WITH ACUTE}.".encode()[:-1])
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(60) == 0, process.stderr.read().decode()
    assert len(rest) > 1000
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ctrl_c_ends_a_stream_that_waits_for_text(tiny, tmp_path):
    args = ["-", "--model", str(tiny), *SHORT, "--stream", "-o", "out.wav"]
    with subprocess.Popen(
        [*COMMAND, *args], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        process.stdin.write(b"One. Two. ")
        process.stdin.flush()
        while b"device" not in process.stderr.readline():
            pass
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().decode().splitlines()[-1] == "error: interrupted"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "output", "message"),
    [
        ({"latency": "low"}, "a.wav", "--latency low is for --stream"),
        ({"latency": "fast"}, "a.wav", "--latency is 'fast'; known: chunk, low"),
        ({"format": "pcm"}, "-", "--format is for --stream"),
        ({"stream": True, "format": "pcm"}, "a.wav", "--format is for --stream"),
        ({"stream": True, "format": "mp3"}, "-", "'mp3' is no format of a stream"),
        ({"hops": "5"}, "a.wav", "--hops and --first-steps are for"),
        ({"stream": True, "latency": "chunk", "first_steps": 5}, "-", "--hops and --first-steps"),
        ({"stream": True, "hops": "5,x"}, "-", "--hops is '5,x'; give numbers"),
        ({"stream": True, "hops": "5,0"}, "-", r"hops are \(5, 0\)"),
        ({"stream": True, "first_steps": 0}, "-", "first_steps is 0; use 1 to 100"),
        ({"stream": True, "flush_after": -1.0}, "-", "--flush-after is -1"),
        ({"play": True}, None, r"sounddevice is not installed: pip install"),
    ],
)
def test_options_that_do_not_fit_are_refused(args, output, message, monkeypatch):
    monkeypatch.setattr(streaming, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=message):
        StreamOptions(**args).check(output, None, arrives=False)


def test_a_stream_has_no_subtype():
    with pytest.raises(InputError, match="--subtype is for files"):
        StreamOptions(stream=True).check("-", "FLOAT", arrives=False)


def test_what_is_played_and_written():
    assert StreamOptions(play=True).output(None) is None
    assert StreamOptions(play=True).output("a.wav") == "a.wav"
    assert StreamOptions(stream=True).output(None) == "out.wav"
    assert StreamOptions(stream=True).output("") == "", "which is refused as a file"
    assert StreamOptions().chosen_latency(HopSchedule()) == "chunk"
    assert StreamOptions(play=True).chosen_latency(HopSchedule((9,))) == HopSchedule((9,))
    assert StreamOptions(stream=True, hops="5,9", first_steps=4).chosen_latency(
        HopSchedule()
    ) == HopSchedule((5, 9), first_steps=4)
    assert StreamOptions(play=True, latency="chunk").chosen_latency(HopSchedule()) == "chunk"


class FakeDevice:
    """Plays as fast as it is given samples."""

    active, latency = True, 0.0

    def __init__(self, samples):
        self.samples, self.heard, self.closed = samples, [], False
        samples.ended = self  # the player waits for it

    def is_set(self) -> bool:
        block = np.zeros(1200, np.float32)
        self.samples.fill(block)
        self.heard.append(block)
        return self.samples.seconds == 0

    def set(self) -> None:
        pass

    def wait(self, timeout: float) -> bool:
        return self.is_set()

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        pass


def test_played_sound_is_kept_whole_in_a_file(tmp_path, monkeypatch):
    devices = []

    def opened(samples):
        devices.append(FakeDevice(samples))
        return devices[-1]

    monkeypatch.setattr(player.Player.__init__, "__defaults__", (opened, time.monotonic))
    waves = [np.full(24_000, 0.1 * i, np.float32) for i in range(1, 4)]
    path = tmp_path / "a.wav"
    with open_sinks(StreamOptions(play=True), HopSchedule(), str(path), "FLOAT", 100, 1.0) as sinks:
        for wave in waves:
            sinks.write(wave)
        sinks.finish()
    heard = np.concatenate(devices[0].heard)
    assert np.array_equal(heard[heard != 0], np.concatenate(waves))
    assert np.array_equal(soundfile.read(path, dtype="float32")[0], np.concatenate(waves))
    assert sinks.playback.underruns == 0
    assert devices[0].closed
    assert sinks.first_audio is not None
