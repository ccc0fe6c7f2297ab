"""Measures streams: how soon audio comes, and whether playback runs dry.

Responsible for requests at the same time, text that arrives while it is synthesized, and the
figures of both. Not responsible for tables and files (report.py) or for when playback starts
(audio/prebuffer.py).

One engine is loaded, in this process. Each row has an unmeasured round first, then rounds of
``streams`` requests at once, with other seeds in each, until ``runs`` streams are measured. Rows
with text that arrives take a quarter of the runs, because each takes as long as its writer.

The clock of a stream starts with the call, or with the writer. A piece has arrived when the caller
has it. Leading silence is part of the audio, so first sound is later than first audio by it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from chatterbox_opt.audio.prebuffer import (
    Arrival,
    Prebuffer,
    simulate,
    smallest_prebuffer,
    speed_of,
)
from chatterbox_opt.audio.silence import sound_span
from chatterbox_opt.bench import roofline
from chatterbox_opt.bench.report import STREAM
from chatterbox_opt.bench.timing import BenchJob
from chatterbox_opt.config import hardware
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import MEL_PER_TOKEN, SAMPLE_RATE, TOKEN_RATE
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.request import CHUNK, LOW, Piece, Request, VoiceSource
from chatterbox_opt.runtime.own_thread import in_own_thread
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.incremental import IncrementalSplitter

TEXT = (  # one chunk, two sentences: about 6 s of the built-in model
    "The boat left the harbour early, long before the fog had lifted. Nobody on the pier saw it go."
)
MEL_RATE = MEL_PER_TOKEN * TOKEN_RATE  # frames per second
STREAMS = (1, 2, 4, 8)  # at once
RATES = (20, 50, 100)  # characters a second of text that arrives
WRITTEN_AT_ONCE = 4  # characters; about a token of a language model
WRITTEN_SHARE = 4  # of the runs, one in so many


@dataclass(frozen=True, slots=True)
class StreamJob:
    """What is measured.

    Attributes:
        model: name or directory, as for synth.
        device, profile: as ``Engine.load``.
        text: of every stream.
        runs: streams that are measured in a row, at least.
        streams: how many at once, a row each.
        rates: characters a second at which text arrives, a row each.
        schedule: that of low latency, from the engine's own.
        voice_seconds: of the voice in the flow, see ``Voice.shortened``; None: all.
        seconds: of audio at most, with random weights, which do not end.
    """

    model: str
    device: str = hardware.AUTO
    profile: str = hardware.AUTO
    text: str = TEXT
    runs: int = 20
    streams: tuple[int, ...] = STREAMS
    rates: tuple[int, ...] = RATES
    schedule: Callable[[HopSchedule], HopSchedule] = lambda default: default
    voice_seconds: float | None = None
    seconds: float = 10.0


class StreamingEngine(Protocol):
    """What is used of an ``Engine``."""

    def submit(self, request: Request) -> Iterator[Piece]:
        """Start a request; its pieces."""
        ...

    def pieces(
        self,
        text: Iterable[str | None],
        voice: VoiceSource,
        sampling: Sampling | None,
        *,
        latency: str | HopSchedule,
    ) -> Iterator[Piece]:
        """The pieces of a text that arrives."""
        ...


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream that was received.

    Attributes:
        arrivals: of the pieces: seconds since its start, and seconds of audio.
        leading_silence: seconds of audio before the first sound.
        text_seconds: until the first chunk of an arriving text was complete; None: it was there.
    """

    arrivals: tuple[Arrival, ...]
    leading_silence: float
    text_seconds: float | None = None

    @property
    def audio_seconds(self) -> float:
        """Length of the audio."""
        return sum(seconds for _, seconds in self.arrivals)

    @property
    def speed(self) -> float | None:
        """Seconds of audio a second after the first piece, the lowest up to any later one; None
        without one."""
        return speed_of(self.arrivals)


def measure(job: StreamJob, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure all rows; return the report (see report.py for its columns).

    Args:
        on_progress: callback, called with a line of progress.

    Raises:
        ChatterboxOptError: as ``Engine.load`` and ``Engine.submit``.
    """
    on_progress("measuring memory bandwidth and matrix products")
    with Engine.load(job.model, job.profile, device=job.device) as engine:
        measured = BenchJob(job.model, job.device)
        facts = in_own_thread(lambda: roofline.machine_facts(measured, engine.checkpoint))
        facts |= {"text": job.text, "plan": engine.plan.summary()}
        sampling = Sampling()
        if engine.checkpoint.config.random_weights:
            sampling = Sampling(max_tokens=max(2, round(job.seconds * TOKEN_RATE)))
        voice = engine.voice()
        if job.voice_seconds is not None:
            voice = voice.shortened(job.voice_seconds)
        schedule = job.schedule(engine.hops)
        facts |= {"hops": list(schedule.sizes), "first_steps": schedule.first_steps}
        facts |= {"voice_seconds": voice.mel.shape[1] / MEL_RATE}
        on_progress("warm-up")
        engine.warm_up(job.text, voice=voice)
        request = Request("bench", job.text, voice, sampling)
        rows = []
        for latency in (schedule, CHUNK):
            for count in job.streams:
                rows.append(
                    _row_at_once(engine, replace(request, latency=latency), count, job.runs)
                )
                on_progress(_line(rows[-1]))
            for rate in job.rates:
                runs = -(-job.runs // WRITTEN_SHARE)
                rows.append(_row_written(engine, replace(request, latency=latency), rate, runs))
                on_progress(_line(rows[-1]))
    return {"kind": STREAM, "card": facts, "rows": rows, "failed": {}}


def _line(row: dict[str, Any]) -> str:
    return f"{row['name']}: first audio after {row['first_audio_seconds']:.3f} s"


def _row_at_once(
    engine: StreamingEngine, request: Request, count: int, runs: int
) -> dict[str, Any]:
    """The row of ``count`` streams at once."""
    streams: list[Stream] = []
    work = 0.0
    warm: list[Stream] = []
    for run in range(1 + -(-runs // count)):
        started = time.perf_counter()
        received = at_once(engine, _seeded(request, run * count, count))
        if run:
            work += time.perf_counter() - started
            streams += received
        else:
            warm = received
    speed = min((stream.speed for stream in warm if stream.speed), default=None)
    audio = sum(stream.audio_seconds for stream in streams)
    latency = _name(request.latency)
    row: dict[str, Any] = {"name": f"{latency} x{count}", "latency": latency, "streams": count}
    row |= {"characters_per_second": None, "realtime_x": audio / work}
    return row | figures(streams, request.latency, speed)


def _row_written(engine: StreamingEngine, request: Request, rate: int, runs: int) -> dict[str, Any]:
    """The row of a text that arrives with ``rate`` characters a second."""
    requests = _seeded(request, 0, runs + 1)
    _, *streams = [written(engine, one, rate) for one in requests]
    latency = _name(request.latency)
    row: dict[str, Any] = {"name": f"{latency} {rate}/s", "latency": latency, "streams": 1}
    # as fast as its writer: no measure of the engine's speed
    row |= {"characters_per_second": rate, "realtime_x": None}
    return row | figures(streams, request.latency)


def _name(latency: str | HopSchedule) -> str:
    return latency if isinstance(latency, str) else LOW


def _seeded(request: Request, first: int, count: int) -> list[Request]:
    return [
        replace(request, id=str(seed), sampling=replace(request.sampling, seed=seed))
        for seed in range(first, first + count)
    ]


def at_once(engine: StreamingEngine, requests: Sequence[Request]) -> list[Stream]:
    """Receive all requests at the same time, each in a thread of its own.

    Raises:
        ChatterboxOptError: of a request.
    """
    started = time.perf_counter()

    def receive(request: Request) -> Stream:
        return _received(engine.submit(request), started)

    with ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(receive, requests))


def written(engine: StreamingEngine, request: Request, rate: float) -> Stream:
    """Receive the request while its text is being written.

    Args:
        rate: characters a second.

    Raises:
        ChatterboxOptError: of the text or a request.
    """
    started = time.perf_counter()
    pieces = engine.pieces(
        typed(request.text, rate), request.voice, request.sampling, latency=request.latency
    )
    stream = _received(pieces, started)
    return replace(stream, text_seconds=_first_complete(request.text) / rate)


def _first_complete(text: str) -> int:
    """How many characters are written when the first chunk of a text is complete."""
    splitter, count = IncrementalSplitter(), 0
    for part in _parts(text):
        count += len(part)
        if splitter.feed(part):
            break
    return count


def _parts(text: str) -> list[str]:
    return [text[i : i + WRITTEN_AT_ONCE] for i in range(0, len(text), WRITTEN_AT_ONCE)]


def typed(text: str, rate: float) -> Iterator[str]:
    """The text in parts of ``WRITTEN_AT_ONCE`` characters, each when its last one is due."""
    due = time.perf_counter()
    for part in _parts(text):
        due += len(part) / rate
        time.sleep(max(0.0, due - time.perf_counter()))
        yield part


def _received(pieces: Iterator[Piece], started: float) -> Stream:
    arrivals, waves = [], []
    for piece in pieces:
        if len(piece.samples):
            arrivals.append((time.perf_counter() - started, piece.duration))
            waves.append(piece.samples)
    first, _ = sound_span([np.concatenate(waves)])
    return Stream(tuple(arrivals), first / SAMPLE_RATE)


def figures(
    streams: Sequence[Stream], latency: str | HopSchedule, speed: float | None = None
) -> dict[str, float | int | None]:
    """The columns of a row that depend on its streams only.

    Args:
        streams: that were measured, at least one.
        speed: seconds of audio a second that is known from before, for the prebuffer.

    Returns:
        Seconds, the median over streams where nothing else is said: ``first_audio``, also its 95th
        percentile; ``leading_silence``; ``piece_interval``, from piece to piece, also its 95th
        percentile; ``playback_start``, with the prebuffer that is computed while pieces arrive;
        ``smallest_prebuffer`` without any underrun, the largest over streams; ``after_text``, from
        the first complete chunk of arriving text to the first audio. ``underruns``: of all streams
        with the computed prebuffer. None where there is nothing to measure.
    """
    firsts = [stream.arrivals[0][0] for stream in streams]
    waits = [later - earlier for s in streams for (earlier, _), (later, _) in pairwise(s.arrivals)]
    sizes = latency.seconds if isinstance(latency, HopSchedule) else []
    played = [
        simulate(stream.arrivals, Prebuffer(0.0, schedule=sizes, speed=speed)) for stream in streams
    ]
    late = [
        stream.arrivals[0][0] - stream.text_seconds
        for stream in streams
        if stream.text_seconds is not None
    ]
    return {
        "measured_streams": len(streams),
        "audio_seconds": statistics.median(stream.audio_seconds for stream in streams),
        "first_audio_seconds": statistics.median(firsts),
        "first_audio_p95_seconds": _p95(firsts),
        "leading_silence_seconds": statistics.median(s.leading_silence for s in streams),
        "after_text_seconds": statistics.median(late) if late else None,
        "piece_interval_seconds": statistics.median(waits) if waits else None,
        "piece_interval_p95_seconds": _p95(waits) if waits else None,
        "playback_start_seconds": statistics.median(play.started for play in played),
        "underruns": sum(play.underruns for play in played),
        "smallest_prebuffer_seconds": max(smallest_prebuffer(s.arrivals) for s in streams),
    }


def _p95(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95))
