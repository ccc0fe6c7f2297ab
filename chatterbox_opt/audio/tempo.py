"""The speed of finished sound, its pitch kept: FFmpeg's ``atempo`` filter, through PyAV.

Responsible for a stream of samples at another speed. Not responsible for the rate at which the
model speaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio.containers import audio_frame
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

MIN_SPEED, MAX_SPEED = 0.25, 4.0
MIN_FILTER = 0.5  # of one atempo filter; above 2 it skips samples, so two share that too
MAX_FILTER = 2.0


class Tempo:
    """Makes one sound faster or slower, piece by piece.

    Args:
        speed: 0.25 to 4; at 1 samples pass unchanged.

    Raises:
        InputError: another speed.
    """

    def __init__(self, speed: float) -> None:
        if not MIN_SPEED <= speed <= MAX_SPEED:
            raise InputError(f"speed is {speed:g}; use {MIN_SPEED:g} to {MAX_SPEED:g}")
        self._graph: Any = None if speed == 1 else _graph(_factors(speed))
        self._samples = 0

    def change(self, wave: Wave) -> Wave:
        """Take float32 [n] at 24 kHz; return what is ready, float32 [m]."""
        if self._graph is None or not len(wave):
            return wave
        self._graph.push(audio_frame(wave, self._samples))
        self._samples += len(wave)
        return self._pull()

    def finish(self) -> Wave:
        """The rest, float32 [m]; nothing may be changed afterwards."""
        import numpy as np

        if self._graph is None or not self._samples:
            return np.empty(0, np.float32)
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> Wave:
        import av
        import numpy as np

        waves = [np.empty(0, np.float32)]
        while True:
            try:
                waves.append(self._graph.pull().to_ndarray().reshape(-1))
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(waves)


def _factors(speed: float) -> list[float]:
    """Speeds of filters one after the other."""
    edge = MAX_FILTER if speed > MAX_FILTER else MIN_FILTER
    return [speed] if MIN_FILTER <= speed <= MAX_FILTER else [edge, speed / edge]


def _graph(factors: list[float]) -> Any:
    import av.filter

    graph = av.filter.Graph()
    last = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono")
    for factor in factors:
        tempo = graph.add("atempo", f"{factor:.6f}")
        last.link_to(tempo)
        last = tempo
    last.link_to(graph.add("abuffersink"))
    graph.configure()
    return graph
