"""``bench --stream``: figures of given arrivals, text that arrives, the report on tiny weights."""

from __future__ import annotations

import csv
import io
import json
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from typer.testing import CliRunner

from chatterbox_opt.bench import chart, report, roofline, streaming
from chatterbox_opt.bench.streaming import Stream
from chatterbox_opt.cli.application import app
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Piece, Request
from chatterbox_opt.text.incremental import chunks_of

MS_10 = SAMPLE_RATE // 100


class FakeEngine:
    """Answers with two pieces: 20 ms of silence and 20 ms of sound, and a second of sound."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.waiting = threading.Barrier(1)

    def submit(self, request: Request):
        self.requests.append(request)
        self.waiting.wait(timeout=10)
        first = np.zeros(4 * MS_10, dtype=np.float32)
        first[2 * MS_10 :] = 0.5
        later = np.full(SAMPLE_RATE, 0.5, dtype=np.float32)
        none = np.empty(0, dtype=np.float32)
        yield from (Piece(wave, request.text, 1, {}) for wave in (none, first, later))

    def pieces(self, text, voice, sampling, *, latency):
        for chunk in chunks_of(text):
            if chunk.text:
                yield from self.submit(Request("x", chunk.source, voice, sampling, latency))


def test_figures_of_given_arrivals():
    early = Stream(((0.2, 0.4), (0.5, 1.0), (1.0, 2.0)), 0.05)
    late = Stream(((0.3, 0.4), (1.2, 1.0), (1.3, 2.0)), 0.07)
    found = streaming.figures([early, late], "chunk", speed=100.0)
    assert found == {
        "measured_streams": 2,
        "audio_seconds": pytest.approx(3.4),
        "first_audio_seconds": pytest.approx(0.25),
        "first_audio_p95_seconds": pytest.approx(0.295),
        "leading_silence_seconds": pytest.approx(0.06),
        "after_text_seconds": None,
        "piece_interval_seconds": pytest.approx(0.4),
        "piece_interval_p95_seconds": pytest.approx(0.84),
        "playback_start_seconds": pytest.approx(0.25),
        "underruns": 1,  # with such a speed both start at once; the later runs dry at 0.7 s
        "smallest_prebuffer_seconds": pytest.approx(0.4),
    }
    assert early.speed == pytest.approx(1.0 / 0.3), "the lowest up to any piece"


def test_a_slow_speed_starts_playback_later():
    stream = Stream(((0.2, 0.4), (1.2, 1.0), (2.0, 0.5)), 0.0)
    at_once = streaming.figures([stream], HopSchedule(), speed=100.0)
    later = streaming.figures([stream], HopSchedule(), speed=1.2)
    assert at_once["underruns"] == 1 and later["underruns"] == 0
    assert later["playback_start_seconds"] > at_once["playback_start_seconds"]


def test_one_piece_has_no_intervals():
    found = streaming.figures([Stream(((0.5, 1.0),), 0.0)], "chunk")
    assert found["piece_interval_seconds"] is None
    assert found["playback_start_seconds"] == 0.5 and found["underruns"] == 0


def test_streams_at_once_are_requests_at_the_same_time():
    engine = FakeEngine()
    engine.waiting = threading.Barrier(4)  # breaks unless four are running
    requests = streaming._seeded(Request("x", "Hello."), 3, 4)
    streams = streaming.at_once(engine, requests)
    assert sorted(request.sampling.seed for request in engine.requests) == [3, 4, 5, 6]
    for stream in streams:
        assert [seconds for _, seconds in stream.arrivals] == [0.04, 1.0], "an empty one is none"
        assert stream.leading_silence == pytest.approx(0.01), "of silence a margin is kept"


def test_at_least_the_runs_are_measured_after_a_round_that_is_not():
    engine = FakeEngine()
    row = streaming._row_at_once(engine, Request("x", "Hello.", latency="low"), 2, 3)
    assert row["measured_streams"] == 4 and len(engine.requests) == 6
    assert (row["name"], row["latency"], row["streams"]) == ("low x2", "low", 2)
    assert row["realtime_x"] > 0


@pytest.mark.parametrize("text", ["Hello there. How are you?", "abcd", "a"])
def test_text_arrives_whole_and_when_it_is_due(text, monkeypatch):
    clock = [10.0]
    monkeypatch.setattr(streaming.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(streaming.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    parts = []
    for part in streaming.typed(text, 50):
        parts.append(part)
        assert clock[0] == pytest.approx(10 + len("".join(parts)) / 50)
    assert "".join(parts) == text


def test_each_chunk_of_arriving_text_is_a_request():
    engine = FakeEngine()
    request = Request("x", "One sentence is here. Another one follows it. The end.", latency="low")
    stream = streaming.written(engine, request, 20_000)
    assert " ".join(r.text for r in engine.requests) == request.text
    assert len(engine.requests) > 1
    assert {r.latency for r in engine.requests} == {"low"}
    assert len(stream.arrivals) == 2 * len(engine.requests)
    assert 0 < stream.text_seconds <= stream.arrivals[0][0]


def test_an_error_of_a_request_is_an_error():
    with pytest.raises(InputError, match="no letter"):
        streaming.written(FakeEngine(), Request("x", "..."), 20_000)


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory):
    """Of its own: streams start a thread, which the session's engine must not have."""
    from chatterbox_opt import Engine
    from chatterbox_opt.voices.store import VoiceStore

    store = VoiceStore(tmp_path_factory.mktemp("voices"))
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        yield engine


@pytest.fixture(scope="module")
def measured(engine, tiny, tmp_path_factory):
    """One run of the command with every output; the engine is that above."""
    home = tmp_path_factory.mktemp("bench")
    files = {kind: home / f"out.{kind}" for kind in ("output", "csv", "markdown")}
    files["plot"] = home / "plot.svg"
    args = ["bench", "--stream", "--quick", "--model", str(tiny), "--profile", "dev", "--runs", "1",
            "--text", "A word. Two.", "--seconds", "0.4"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SMALL_READ", 1 << 20)
        patch.setattr(roofline, "SMALL_GEMM", 64)
        patch.setattr(streaming.Engine, "load", lambda *args, **options: nullcontext(engine))
        paths = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
        result = CliRunner().invoke(app, args + paths)
    assert result.exit_code == 0, result.output
    return result.output, files


def test_the_report_has_its_documented_shape(measured):
    output, files = measured
    found = json.loads(files["output"].read_text())
    assert found["kind"] == "stream" and found["card"]["text"] == "A word. Two."
    names = [f"{latency} {of}" for latency in ("low", "chunk") for of in ("x1", "x2", "100/s")]
    assert [row["name"] for row in found["rows"]] == names
    for row in found["rows"]:
        arrives = row["characters_per_second"] is not None
        for _, path, _ in report.STREAM_COLUMNS:
            absent = {"realtime_x"} if arrives else {"after_text_seconds"}
            if path.startswith("piece_interval"):
                continue  # one piece has none
            assert (row[path] is None) == (path in absent), path
        assert row["first_audio_p95_seconds"] >= row["first_audio_seconds"] > 0
        assert row["playback_start_seconds"] >= row["first_audio_seconds"]
    assert "low x1" in output and "underruns" in output
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert [row["name"] for row in rows] == names
    assert "| low x1 |" in files["markdown"].read_text()
    drawn = files["plot"].read_text()
    assert "leading silence" in drawn and "from the call" in drawn


def test_it_is_shown_and_compared_again(measured, tmp_path):
    _, files = measured
    stored = str(files["output"])
    result = CliRunner().invoke(app, ["bench", "--from", stored, "--compare", stored])
    assert result.exit_code == 0, result.output
    assert "first_audio_seconds" in result.output and "WORSE" not in result.output
    chart.draw(report.read(files["output"]), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_short_table_fits_80_columns():
    row = {path: 12.3456 for _, path, _ in report.STREAM_COLUMNS}
    row |= {"name": "chunk 100/s", "underruns": 12}
    headings, [line] = report.cells({"kind": "stream", "rows": [row]}, report.STREAM_MAIN)
    widths = [max(map(len, column)) for column in zip(headings, line, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80


@pytest.mark.parametrize(
    "args", [["--rows", "int8"], ["--cold"], ["--profile", "cpu", "--profile", "dev"]]
)
def test_rows_cannot_be_chosen(args):
    result = CliRunner().invoke(app, ["bench", "--quick", "--stream", *args])
    assert isinstance(result.exception, InputError)
    assert "--stream has its own rows" in str(result.exception)
