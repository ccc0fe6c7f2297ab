"""Playback through the sound device while sound is still being made.

Responsible for the samples that wait, for silence where they are late, for when playback starts and
ends, and for opening the device. Not responsible for how much must wait (prebuffer.py).

sounddevice, an extra, and PortAudio below it are loaded when a device is opened.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from chatterbox_opt.audio.prebuffer import Playback, Prebuffer
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import DeviceError, InputError
from chatterbox_opt.utils.closing import Closing

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

REMEDY = 'pip install "chatterbox-opt[play]"'
MAX_WAITING = 60.0  # seconds of sound; 6 MB
_INSTEAD = "or write a file (-o FILE), or pipe to a player (-o - | aplay)"
_POLL = 0.05  # seconds; on Windows a wait does not end by Ctrl-C


class SampleQueue:
    """Samples that wait for the device; between the thread that makes them and the device's.

    Before ``start`` the device gets silence. After it silence is an underrun, but not at the end of
    the sound.

    Attributes:
        underruns: how often samples came too late.
        missing: how many samples of silence were played for them.
        device_underruns: how often the device was not served in time, though samples waited.
        ended: set when everything has been handed to the device, or after ``stop``.
    """

    def __init__(self) -> None:
        self.underruns = self.missing = self.device_underruns = 0
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._waves: deque[Wave] = deque()
        self._waiting = 0  # samples
        self._started = False
        self._complete = False
        self._silent = 0  # samples since the queue ran dry; an underrun if more sound comes

    @property
    def seconds(self) -> float:
        """How much waits."""
        return self._waiting / SAMPLE_RATE

    def put(self, wave: Wave) -> None:
        """Append float32 [n]; after ``stop`` it is dropped."""
        with self._lock:
            if len(wave) and not self._complete:
                self._waves.append(wave)
                self._waiting += len(wave)

    def start(self) -> None:
        """Begin to hand out samples."""
        with self._lock:
            self._started = True

    def complete(self) -> None:
        """No more will be put; what waits is played."""
        with self._lock:
            self._complete = True

    def stop(self) -> None:
        """Drop what waits."""
        with self._lock:
            self._complete = True
            self._waves.clear()
            self._waiting = 0
        self.ended.set()

    def fill(self, block: Wave) -> None:
        """Fill float32 [n] with the next samples, and silence where there are none.

        Called by the device's thread: takes no time and raises nothing.
        """
        with self._lock:
            done = self._copy(block) if self._started else 0
            block[done:] = 0
            if self._started and done < len(block):
                if self._complete:
                    self.ended.set()
                else:
                    self._silent += len(block) - done

    def _copy(self, block: Wave) -> int:
        """Fill as much of the block as there is, and return how much."""
        if self._silent and self._waves:
            self.underruns += 1
            self.missing += self._silent
            self._silent = 0
        done = 0
        while self._waves and done < len(block):
            wave = self._waves.popleft()
            part = wave[: len(block) - done]
            block[done : done + len(part)] = part
            done += len(part)
            if len(part) < len(wave):
                self._waves.appendleft(wave[len(part) :])
        self._waiting -= done
        return done


class Device(Protocol):
    """An open output of the sound device, asking for samples."""

    @property
    def active(self) -> bool:
        """Whether it still asks for samples."""

    @property
    def latency(self) -> float:
        """Seconds from a sample's ``fill`` until it is heard."""

    def abort(self) -> None:
        """Be silent at once."""

    def close(self) -> None:
        """Release the device."""


def open_device(samples: SampleQueue) -> Device:
    """Open the default sound device, mono, 24 kHz; it plays silence until ``samples.start``.

    Raises:
        InputError: sounddevice is not installed.
        DeviceError: PortAudio is missing, or there is no usable device.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise InputError(f"sounddevice is not installed: {REMEDY}") from error
    except OSError as error:  # it has not found the library
        raise DeviceError(
            f"PortAudio is missing: install it (apt install libportaudio2), {_INSTEAD}"
        ) from error

    def callback(block: Any, frames: int, times: Any, status: Any) -> None:
        samples.fill(block[:, 0])
        if status.output_underflow:
            samples.device_underruns += 1

    try:
        stream = sounddevice.OutputStream(
            SAMPLE_RATE, channels=1, dtype="float32", callback=callback
        )
        stream.start()
    except (sounddevice.PortAudioError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeviceError(f"no sound device ({reason}): connect one, {_INSTEAD}") from error
    device: Device = stream
    return device


class Player(Closing):
    """Plays waves as they are written; a sink. ``close`` is silent at once, whatever waits.

    Usage:
        with Player(Prebuffer(time.monotonic())) as player:
            for wave in waves:
                player.write(wave)
            player.finish()
    """

    def __init__(
        self,
        prebuffer: Prebuffer,
        open_device: Callable[[SampleQueue], Device] = open_device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the device.

        Args:
            prebuffer: decides when playback starts.
            clock: that of ``prebuffer``, seconds.

        Raises:
            InputError, DeviceError: as ``open_device``.
        """
        self._prebuffer = prebuffer
        self._clock = clock
        self._queue = SampleQueue()
        self._started: float | None = None
        self._device = open_device(self._queue)

    def write(self, wave: Wave) -> None:
        """Append float32 [n], 24 kHz, and start when enough waits.

        Returns at once, unless more than ``MAX_WAITING`` wait to be played: memory stays bounded.

        Raises:
            DeviceError: as ``finish``.
        """
        self._queue.put(wave)
        if self._started is None and len(wave):
            self._prebuffer.add(self._clock(), len(wave) / SAMPLE_RATE)
            if self._prebuffer.is_enough():
                self._start()
        while self._started is not None and self._queue.seconds > MAX_WAITING:
            self._wait()

    def finish(self) -> Playback:
        """Play to the end, and wait for it; return what was heard.

        Raises:
            DeviceError: the device has stopped, such as one that was unplugged.
        """
        if self._started is None:
            self._start()
        self._queue.complete()
        while not self._queue.ended.is_set():
            self._wait()
        time.sleep(self._device.latency)  # what was handed over is still to be heard
        return self.heard()

    def _wait(self) -> None:
        self._queue.ended.wait(_POLL)
        if not self._device.active:
            raise DeviceError(f"the sound device has stopped: connect it again, {_INSTEAD}")

    def heard(self) -> Playback:
        """What was heard so far."""
        started = self._clock() if self._started is None else self._started
        return Playback(started, self._queue.underruns, self._queue.missing / SAMPLE_RATE)

    def close(self) -> None:
        """Stop at once and release the device."""
        self._queue.stop()
        self._device.abort()
        self._device.close()

    def _start(self) -> None:
        self._queue.start()
        self._started = self._clock()
