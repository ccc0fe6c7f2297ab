from __future__ import annotations

import math
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from chatterbox_opt.audio import player as players
from chatterbox_opt.audio.player import Player, SampleQueue, open_device
from chatterbox_opt.audio.prebuffer import Playback, Prebuffer
from chatterbox_opt.errors import DeviceError, InputError

RATE = 24_000


def ramp(start: int, count: int) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.float32)


def block(samples: SampleQueue, count: int) -> list[float]:
    filled = np.full(count, np.nan, np.float32)
    samples.fill(filled)
    return filled.tolist()


def test_blocks_are_filled_in_order_whatever_their_sizes():
    samples = SampleQueue()
    samples.start()
    for start, count in ((1, 5), (6, 0), (6, 1), (7, 10)):
        samples.put(ramp(start, count))
    assert samples.seconds == 16 / RATE
    assert sum((block(samples, n) for n in (2, 4, 7, 3)), []) == ramp(1, 16).tolist()
    assert samples.seconds == 0


def test_nothing_is_handed_out_and_nothing_is_late_before_the_start():
    samples = SampleQueue()
    samples.put(ramp(1, 2))
    assert block(samples, 3) == [0, 0, 0]
    samples.start()
    assert block(samples, 2) == [1, 2]
    assert samples.underruns == 0


def test_silence_is_an_underrun_if_more_sound_comes():
    samples = SampleQueue()
    samples.start()
    samples.put(ramp(1, 2))
    assert block(samples, 3) == [1, 2, 0]
    assert block(samples, 2) == [0, 0]
    assert samples.underruns == 0
    samples.put(ramp(3, 1))
    assert block(samples, 2) == [3, 0]
    samples.complete()
    assert not samples.ended.is_set()
    assert block(samples, 2) == [0, 0]
    assert (samples.underruns, samples.missing, samples.ended.is_set()) == (1, 3, True)


def test_stop_drops_what_waits():
    samples = SampleQueue()
    samples.start()
    samples.put(ramp(1, 9))
    samples.stop()
    samples.put(ramp(1, 9))
    assert block(samples, 2) == [0, 0]
    assert samples.ended.is_set()


class FakeDevice:
    """Takes blocks of 10 ms, at the speed of the thread that calls ``play``."""

    latency = 0.0

    def __init__(self, samples: SampleQueue) -> None:
        self.samples, self.active, self.closed = samples, True, False
        self.heard: list[float] = []

    def play(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.heard += block(self.samples, RATE // 100)

    def abort(self) -> None:
        self.active = False

    def close(self) -> None:
        self.closed = True


class Fixture:
    """A player with a fake device and a clock that is set."""

    def __init__(self, prebuffer: Prebuffer) -> None:
        self.now = 0.0
        self.player = Player(prebuffer, self._open, clock=lambda: self.now)

    def _open(self, samples: SampleQueue) -> FakeDevice:
        self.device = FakeDevice(samples)
        return self.device

    def write(self, at: float, seconds: float) -> None:
        self.now = at
        self.player.write(np.ones(round(seconds * RATE), np.float32))

    def finish(self) -> Playback:
        thread = threading.Thread(target=self.device.play, args=[60.0])
        thread.start()
        heard = self.player.finish()
        thread.join()
        return heard


def test_playback_starts_when_the_prebuffer_says_so():
    fixture = Fixture(Prebuffer(0.0, schedule=(0.5, 1.0)))
    fixture.write(0.5, 0.5)  # as fast as the sound: the next second takes a second
    fixture.device.play(0.2)
    assert not any(fixture.device.heard)
    fixture.write(1.0, 1.0)
    fixture.device.play(0.2)
    assert all(fixture.device.heard[-10:])
    assert fixture.finish() == Playback(1.0, 0, 0.0)
    assert sum(fixture.device.heard) == 1.5 * RATE


def test_late_sound_is_counted():
    fixture = Fixture(Prebuffer(0.0, speed=9.0))
    fixture.write(0.1, 0.5)
    fixture.device.play(0.8)
    fixture.write(0.9, 0.5)
    assert fixture.finish() == Playback(0.1, 1, pytest.approx(0.3))


def test_a_short_text_is_played_though_nobody_knew_enough():
    fixture = Fixture(Prebuffer(0.0))
    fixture.write(10.0, 0.5)
    assert fixture.finish().underruns == 0
    assert sum(fixture.device.heard) == 0.5 * RATE


def test_close_is_silent_at_once():
    fixture = Fixture(Prebuffer(0.0, speed=9.0))
    with pytest.raises(KeyboardInterrupt), fixture.player:
        fixture.write(0.1, 30.0)
        raise KeyboardInterrupt
    assert fixture.device.closed and not fixture.device.active
    fixture.device.play(0.1)
    assert not any(fixture.device.heard)


def test_a_device_that_stops_ends_the_wait():
    fixture = Fixture(Prebuffer(0.0))
    fixture.write(0.1, 0.5)
    fixture.device.active = False
    with pytest.raises(DeviceError, match="has stopped"):
        fixture.player.finish()


def test_not_more_than_a_minute_waits(monkeypatch):
    monkeypatch.setattr(players, "MAX_WAITING", 1.0)
    fixture = Fixture(Prebuffer(0.0, speed=9.0))
    written = threading.Event()

    def play() -> None:
        while not written.wait(0.001):
            fixture.device.play(0.05)

    playing = threading.Thread(target=play)
    playing.start()
    fixture.write(0.1, 2.0)
    written.set()
    playing.join()
    assert fixture.player._queue.seconds <= 1.0
    slow = Fixture(Prebuffer(0.0))  # has not started: it must not wait for itself
    slow.write(9.0, 2.0)


class FakePortAudioError(Exception):
    pass


def install(monkeypatch, make_stream) -> None:
    module = ModuleType("sounddevice")
    module.PortAudioError = FakePortAudioError
    module.OutputStream = make_stream
    monkeypatch.setitem(sys.modules, "sounddevice", module)


def test_the_device_is_served_by_a_callback(monkeypatch):
    made = []

    def make_stream(rate: int, **options: object) -> SimpleNamespace:
        made.append((rate, options))
        return SimpleNamespace(start=lambda: made.append("started"))

    install(monkeypatch, make_stream)
    samples = SampleQueue()
    samples.start()
    samples.put(ramp(1, 3))
    open_device(samples)
    (rate, options), started = made
    assert (rate, options["channels"], options["dtype"], started) == (RATE, 1, "float32", "started")
    filled = np.full((4, 1), np.nan, np.float32)
    for late in (True, False):
        options["callback"](filled, 4, None, SimpleNamespace(output_underflow=late))
    assert samples.device_underruns == 1
    assert filled.tolist() == [[0]] * 4


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"pip install \"chatterbox-opt\[play\]\""):
        open_device(SampleQueue())


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DeviceError, match="apt install libportaudio2"):
        open_device(SampleQueue())


def test_a_missing_device_is_named(monkeypatch):
    def make_stream(*_: object, **__: object) -> None:
        raise FakePortAudioError("Error querying device -1\nmore")

    install(monkeypatch, make_stream)
    with pytest.raises(DeviceError, match=r"no sound device \(Error querying device -1 more\)"):
        open_device(SampleQueue())


def test_the_real_clock_is_monotonic():
    fixture = Player(Prebuffer(time.monotonic()), FakeDevice)
    assert math.isfinite(fixture.heard().started)
