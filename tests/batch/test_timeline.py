"""Dubbing without a model: where each cue is heard, lengths, the report, resuming."""

from __future__ import annotations

import dataclasses
import json
import zlib
from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile
from helpers.fake_engine import FakeEngine, run_batch
from typer.testing import CliRunner

from chatterbox_opt import Result, Sampling
from chatterbox_opt.audio.tags import Tags
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.job_file import ReadOptions
from chatterbox_opt.batch.joining import timeline
from chatterbox_opt.batch.joining.timeline import CueFit, Fit, Fitting, Overrun, Timing
from chatterbox_opt.batch.readers.captions import Captions
from chatterbox_opt.batch.resuming import prepare
from chatterbox_opt.batch.silences import edges
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.batch import dubbing
from chatterbox_opt.cli.terminal.console import Reporter
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError, OutputError, TextError
from chatterbox_opt.request import Piece
from chatterbox_opt.script.reader import script_of

LETTER = 0.06  # seconds
BEFORE, AFTER = 0.08, 0.25  # seconds of near silence in each file
NEAR = 0.010  # seconds: a cue starts as near to its time


def clock(seconds: float) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"


def srt(cues) -> bytes:
    """A .srt of (start, end, text)."""
    return "\n".join(
        f"{n}\n{clock(start)} --> {clock(end)}\n{text}\n"
        for n, (start, end, text) in enumerate(cues, 1)
    ).encode()


def quiet(seconds: float) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(round(seconds * SAMPLE_RATE)) * 1e-5


def sound(text: str, rate: float) -> np.ndarray:
    """Noise that only this text has, as long as the text is at the rate."""
    generator = np.random.default_rng(zlib.crc32(f"{text} {rate}".encode()))
    samples = round(len(text) * LETTER / rate * SAMPLE_RATE)
    return (generator.standard_normal(samples) * 0.1).clip(-0.4, 0.4)


class Speaker:
    """Speaks at the requests' rates; a text with "bad" in it fails. Stores its requests."""

    def __init__(self) -> None:
        self.asked = []

    def __call__(self, requests):
        for request in requests:
            self.asked.append(request)
            seed = request.sampling.seed
            if "bad" in request.text:
                yield Result(request.id, seed, error=TextError("bad: mend it"))
                continue
            wave = np.concatenate([quiet(BEFORE), sound(request.text, request.rate), quiet(AFTER)])
            half = len(wave) // 2
            pieces = [
                Piece(part.astype("f4"), "", 1, {"t3": 0.5}) for part in (wave[:half], wave[half:])
            ]
            yield Result(request.id, seed, tuple(pieces))


def job_of(cues, rate=1.0, *, markup=False) -> job_file.Job:
    options = ReadOptions(captions=Captions.ALL, markup=True) if markup else None
    return job_file.read("film.srt", srt(cues), Sampling(seed=1), options=options, rate=rate)


def dubbed(
    directory,
    cues,
    timing=None,
    speak=None,
    target=None,
    rate=1.0,
    extension="wav",
    *,
    markup=False,
):
    """The joined wave, how the cues fit, and the summary of the run."""
    timing, job = timing or Timing(), job_of(cues, rate, markup=markup)
    names = [f"{item.id}.{extension}" for item in job.items]
    items = prepare(job.items, names, "m", lambda voice: "v", stretch=timing.stretch)
    fitting = Fitting(items, timing.stretch)
    summary = run_batch(directory, items, speak or Speaker(), fitting=fitting)
    target = target or directory / "dub.wav"
    made = (items, summary.entries, directory, str(target))
    fits, seconds = timeline.dub(*made, timing, timeline.film_seconds(job))
    wave, _ = soundfile.read(target)
    assert seconds == pytest.approx(len(wave) / SAMPLE_RATE, abs=1e-9)
    return wave, {fit.id: fit for fit in fits}, summary


def onset(wave: np.ndarray, burst: np.ndarray, expected: float) -> float:
    """Seconds from ``expected`` to where the first 40 ms of a sound are in a wave."""
    head, reach = burst[: SAMPLE_RATE // 25], round(0.05 * SAMPLE_RATE)
    at = round(expected * SAMPLE_RATE)
    first = max(at - reach, 0)
    window = wave[first : at + reach + len(head)]
    similarity = np.correlate(window, head, "valid")
    best = int(np.argmax(similarity))
    assert similarity[best] > 0.5 * np.square(head).sum(), "it is there"
    return (first + best - at) / SAMPLE_RATE


def film(count: int):
    """Cues of every kind: natural, too long, without a gap, overlapping, of no length, unsorted."""
    generator = np.random.default_rng(3)
    cues, at = [], 0.0
    for number in range(count):
        words = "".join(generator.choice(list("cdefgh"), generator.integers(8, 60)))
        text = f"{words} {number}."
        need = len(text) * LETTER
        room = need * generator.choice([0.0, 0.4, 0.7, 0.85, 0.95, 1.0, 1.3], p=[0.02, 0.08, 0.1, 0.2, 0.2, 0.2, 0.2])  # fmt: skip
        cues.append((round(at, 3), round(at + room, 3), text))
        at = max(at + room + generator.choice([-0.3, 0, 0.05, 0.4, 2.0]), at + 0.15, 0)
    cues[20], cues[21] = cues[21], cues[20]
    return cues


def expected_fit(cues, number: int, timing: Timing) -> tuple[Fit, float, float, float, float]:
    """Fit, rate, seconds, seconds behind the end, and seconds lost, by the rules alone."""
    start, end, text = cues[number]
    end = max(start, end)
    natural, room = len(text) * LETTER, end - start
    rate = 1.0
    if natural > room:
        rate = min(natural / (room - 0.02), timing.stretch) if room > 0.02 else timing.stretch
    length = natural / rate
    after = [max(end, s) for n, (s, e, _) in enumerate(cues) if n != number and max(s, e) > end]
    limit = min(after, default=float("inf"))
    lost = 0.0
    if timing.overrun is Overrun.CUT and start + length > limit:
        lost = start + length - limit
    heard = length - lost
    over = max(start + heard - end, 0)
    if lost:
        return Fit.CUT, rate, heard, over, lost
    if start + heard > limit:
        return Fit.OVERLAP, rate, heard, over, 0
    if over:
        return Fit.GAP, rate, heard, over, 0
    return (Fit.FASTER if rate > 1 else Fit.NATURAL), rate, heard, 0, 0


@pytest.mark.parametrize(
    "overrun", [Overrun.OVERLAP, pytest.param(Overrun.CUT, marks=pytest.mark.slow)]
)
def test_a_film_of_200_cues(tmp_path, overrun):
    cues, timing = film(200), Timing(1.25, overrun)
    wave, fits, summary = dubbed(tmp_path, cues, timing)
    end = max(max(start, end) for start, end, _ in cues)
    last_sound = max(cues[int(id) - 1][0] + fit.seconds for id, fit in fits.items())
    assert len(wave) == round(max(end, last_sound) * SAMPLE_RATE)
    errors, kinds = [], set()
    for number, (start, _, text) in enumerate(cues):
        fit = fits[str(number + 1)]
        expected = expected_fit(cues, number, timing)
        # the ends of a sound are known to a frame of 10 ms
        found = (fit.rate, fit.seconds, fit.over, fit.lost)
        assert found == pytest.approx(expected[1:], abs=0.021), (number, fit, expected)
        near = (
            min(abs(value) for value in (fit.over, fit.lost) if value)
            if fit.over or fit.lost
            else 1
        )
        assert fit.fit is expected[0] or near < 0.021, (number, fit, expected)
        kinds.add(fit.fit)
        assert (fit.start, fit.row) == (start, number + 1)
        if fit.seconds > 0.05:
            burst = sound(text, summary.entries[fit.id].rate)
            errors.append(abs(onset(wave, burst, start)))
    assert len(errors) > 180 and max(errors) <= NEAR
    assert kinds >= {Fit.NATURAL, Fit.FASTER, Fit.GAP, Fit(overrun.value)}


def test_the_file_is_as_long_as_the_film_with_cues_that_are_silent(tmp_path):
    wave, fits, _ = dubbed(tmp_path, [(1, 2, "Short."), (3, 9.5, "[music]")])
    assert len(wave) == round(9.5 * SAMPLE_RATE) and list(fits) == ["1"]
    assert np.abs(wave[: SAMPLE_RATE - 300]).max() == 0
    wave, fits, _ = dubbed(tmp_path, [(0, 1, "x" * 50)])
    assert fits["1"].fit is Fit.GAP and fits["1"].rate == 1.25
    assert len(wave) / SAMPLE_RATE == pytest.approx(50 * LETTER / 1.25, abs=0.02)


@pytest.mark.parametrize("extension", ["m4a", "mp3", "opus"])
def test_files_of_items_may_have_any_format(tmp_path, extension):
    cues = [(1, 4, "x" * 40), (5, 5.5, "y" * 30)]
    wave, fits, _ = dubbed(tmp_path, cues, extension=extension)
    assert (tmp_path / f"2.{extension}").exists()
    assert [fit.fit for fit in fits.values()] == [Fit.NATURAL, Fit.GAP]
    start, stop = (round(second * SAMPLE_RATE) for second in (1, 1 + 40 * LETTER))
    assert np.abs(wave[: start - 1200]).max() < 0.01  # a lossy codec rings before a sound
    loud = np.flatnonzero(np.abs(wave[: 4 * SAMPLE_RATE]) > 0.05)
    assert [loud[0], loud[-1]] == pytest.approx([start, stop], abs=0.05 * SAMPLE_RATE)


def test_a_dubbed_file_has_tags(tmp_path):
    job, target = job_of([(0, 2, "x" * 20)]), tmp_path / "dub.m4a"
    items = prepare(job.items, ["1.wav"], "m", lambda voice: "v")
    entries = run_batch(tmp_path, items, Speaker()).entries
    made = (items, entries, tmp_path, str(target), Timing(), timeline.film_seconds(job))
    timeline.dub(*made, Tags(title="A Film"))
    with av.open(target) as opened:
        assert opened.metadata["title"] == "A Film"


def test_only_what_is_too_long_is_made_again_with_its_seed(tmp_path):
    cues = [(0, 2, "Short enough."), (2, 4, "x" * 40), (4, 6, "x" * 60)]
    speak = Speaker()
    _, fits, summary = dubbed(tmp_path, cues, speak=speak)
    assert [request.id for request in speak.asked if request.rate == 1] == ["1", "2", "3"]
    again = {request.id: request for request in speak.asked if request.rate != 1}
    assert {id: round(request.rate, 3) for id, request in again.items()} == {"2": 1.212, "3": 1.25}
    assert all(request.sampling.seed == 1 for request in again.values())
    assert [fits[id].fit for id in "123"] == [Fit.NATURAL, Fit.FASTER, Fit.GAP]
    assert [summary.entries[id].rate for id in "123"] == [1, again["2"].rate, 1.25]
    assert summary.entries["2"].duration < 2 + BEFORE + AFTER


def test_a_rate_of_the_job_is_made_faster_up_to_the_highest(tmp_path):
    speak = Speaker()
    _, fits, _ = dubbed(tmp_path, [(0, 1, "x" * 60)], Timing(1.5), speak, rate=1.8)
    assert [request.rate for request in speak.asked] == [1.8, 2.0]
    assert fits["1"].rate == 2
    speak = Speaker()
    dubbed(tmp_path, [(0, 1, "y" * 60)], Timing(1.0), speak)
    assert [request.rate for request in speak.asked] == [1.0], "--stretch 1 never makes it again"


def test_a_cut_fades_and_nothing_follows(tmp_path):
    cues = [(0, 1, "x" * 40), (1, 3, "Next.")]
    cut, fits, _ = dubbed(tmp_path, cues, Timing(1.0, Overrun.CUT))
    assert fits["1"].fit is Fit.CUT
    assert (fits["1"].seconds, fits["1"].over) == pytest.approx((1.0, 0.0))
    assert fits["1"].lost == pytest.approx(40 * LETTER - 1, abs=0.02)
    before = slice(SAMPLE_RATE - 480, SAMPLE_RATE - 240)  # below the next cue's margin of 10 ms
    assert 0 < np.abs(cut[before]).mean() < 0.8 * np.abs(cut[: SAMPLE_RATE // 2]).mean()
    mixed, fits, _ = dubbed(tmp_path, cues, Timing(1.0, Overrun.OVERLAP))
    assert fits["1"].fit is Fit.OVERLAP
    lead, burst = sound("x" * 40, 1.0), sound("Next.", 1.0)
    both = lead[SAMPLE_RATE:][: len(burst)] + burst
    assert np.abs(mixed[SAMPLE_RATE:][: len(burst)] - both).max() < 1e-3


def test_a_pause_before_the_first_word_of_a_cue_is_heard(tmp_path):
    class Marked(Speaker):
        def __call__(self, requests):
            for request in requests:
                lead, tail = edges(script_of(request))
                [result] = super().__call__([replace(request, text=script_of(request).text)])
                wave = np.concatenate([piece.samples for piece in result.pieces])
                silent = [np.zeros(round((s or 0) * SAMPLE_RATE), "f4") for s in (lead, tail)]
                wave = np.concatenate([silent[0], wave, silent[1]])
                yield replace(result, pieces=(Piece(wave, "", 1, {"t3": 0.5}),))

    cues = [(1, 8, "[pause:2s]Hello there."), (2, 4, "Before."), (9, 10, "[pause:3s]Late."),
            (9.5, 11, "x" * 20), (20, 23, "[pause:2s]" + "z" * 20)]  # fmt: skip
    for overrun in Overrun:
        speak, timing = Marked(), Timing(1.25, overrun)
        wave, fits, _ = dubbed(tmp_path, cues, timing, speak=speak, markup=True)
        heard = [("Hello there.", 3, 1.0), ("Before.", 2, 1.0), ("Late.", 12, 1.25)]
        for text, start, rate in heard:
            assert abs(onset(wave, sound(text, rate), start)) <= NEAR, text
        assert fits["1"].seconds == pytest.approx(12 * LETTER, abs=0.021)
        assert (fits["3"].end, fits["3"].fit) == (10, Fit.GAP)
        assert fits["5"].fit is Fit.FASTER, "its cue has a second for words"


def test_cues_at_one_time_are_both_heard(tmp_path):
    wave, fits, _ = dubbed(tmp_path, [(1, 4, "One voice here."), (1, 4, "Another voice.")])
    assert {fit.fit for fit in fits.values()} == {Fit.NATURAL}
    for text in ("One voice here.", "Another voice."):
        assert abs(onset(wave, sound(text, 1.0), 1)) <= NEAR


def test_loud_sounds_together_stay_within_the_format(tmp_path):
    def loud(requests):
        for request in requests:
            wave = np.full(SAMPLE_RATE, 0.9, np.float32)
            yield Result(request.id, 0, (Piece(wave, "", 1, {}),))

    wave, *_ = dubbed(tmp_path, [(0, 2, "a"), (0, 2, "b")], speak=loud)
    assert wave.max() == pytest.approx(1, abs=1e-3) and wave.min() >= -1


def test_resuming_makes_what_has_another_length(tmp_path):
    cues = [(0, 2, "One is short."), (2, 4, "x" * 40), (5, 6, "Three.")]
    first, fits, _ = dubbed(tmp_path, cues)
    again, same, summary = dubbed(tmp_path, cues, speak=(speak := Speaker()))
    assert not speak.asked and summary.skipped == 3
    assert np.array_equal(first, again) and same == fits
    later = [(start + 1, end + 1, text) for start, end, text in cues]
    moved, _, _ = dubbed(tmp_path, later, speak=(speak := Speaker()))
    assert not speak.asked, "another time is the same file"
    assert np.array_equal(moved[SAMPLE_RATE:], first)
    later[1] = (3, 5.5, "x" * 40)
    _, fits, _ = dubbed(tmp_path, later, speak=(speak := Speaker()))
    assert [(r.id, r.rate) for r in speak.asked] == [("2", 1)] and fits["2"].rate == 1
    dubbed(tmp_path, later, Timing(1.3), speak=(speak := Speaker()))
    assert {request.id for request in speak.asked} == {"1", "2", "3"}


def test_a_stop_loses_nothing_that_was_begun(tmp_path):
    """What is to be made again is finished after the signal to stop."""
    from chatterbox_opt.batch import manifest
    from chatterbox_opt.batch.runner import BatchRunner, RunOptions

    job = job_of([(0, 1, "x" * 30), (1, 2, "y" * 30), (2, 3, "z" * 30)])
    items = prepare(job.items, ["1.wav", "2.wav", "3.wav"], "m", lambda voice: "v", stretch=1.25)
    with manifest.open_manifest(tmp_path) as noted:
        options = RunOptions(fitting=Fitting(items, 1.25))
        runner = BatchRunner(noted, items, lambda event: None, options)

        def speak(requests):
            for result in Speaker()(requests):
                runner.stop()
                yield result

        summary = runner.run(speak)
    assert list(summary.entries) == ["1"] and summary.left == 2
    assert summary.entries["1"].rate == 1.25


def test_a_failure_is_that_of_its_item(tmp_path):
    job = job_of([(0, 2, "Good one."), (2, 3, "bad")])
    items = prepare(job.items, ["1.wav", "2.wav"], "m", lambda voice: "v", stretch=1.25)
    summary = run_batch(tmp_path, items, Speaker(), fitting=Fitting(items, 1.25))
    assert [entry.status for entry in summary.entries.values()] == ["done", "failed"]


def test_a_rejected_transcript_is_retried_and_fitted(tmp_path):
    class Verifier:
        max_wer = 0.2
        rates = iter([0.5, 0.1])

        def word_error_rate(self, texts, waves, language):
            self.seconds = sum(map(len, waves)) / SAMPLE_RATE
            return next(self.rates)

    job, speak, verifier = job_of([(0, 2, "x" * 40)]), Speaker(), Verifier()
    items = prepare(job.items, ["1.wav"], "m", lambda voice: "v", stretch=1.25)
    options = {"fitting": Fitting(items, 1.25), "verifier": verifier, "retries": 1}
    summary = run_batch(tmp_path, items, speak, **options)
    assert [round(request.rate, 2) for request in speak.asked] == [1, 1.21, 1, 1.21]
    assert len({request.sampling.seed for request in speak.asked}) == 2
    assert summary.entries["1"].rate == speak.asked[-1].rate
    assert verifier.seconds == pytest.approx(40 * LETTER / speak.asked[-1].rate + BEFORE + AFTER)


def test_what_has_no_times_or_impossible_ones_is_refused():
    lines = job_file.read("a.txt", b"One.\nTwo.\n", Sampling())
    with pytest.raises(InputError, match="--timed is for subtitles"):
        timeline.check_times(lines)
    for times, text in [
        ("999:00:00,0 --> 999:00:01,0", "Hello."),
        ("999:00:00,0 --> 999:00:01,0", "[music]"),
        ("999:00:01,0 --> 00:00:02,0", "Hello."),
        ("999:00:01,0 --> 00:00:02,0", "..."),
    ]:
        content = f"1\n{times}\n{text}\n\n2\n00:00:01,0 --> 00:00:02,0\nHello.\n"
        late = job_file.read("a.srt", content.encode(), Sampling())
        with pytest.raises(InputError, match="row 1 ends after 999 h"):
            timeline.check_times(late)
    timeline.check_times(job_of([(0, 1, "Fine.")]))


def test_a_film_that_is_too_long_for_a_wav(tmp_path):
    job = job_of([(0, 1, "Hello.")])
    items = prepare(job.items, ["1.wav"], "m", lambda voice: "v", stretch=1.25)
    entries = run_batch(tmp_path, items, FakeEngine()).entries
    target = tmp_path / "dub.wav"
    with pytest.raises(OutputError, match="too long for a wav: give .flac"):
        timeline.dub(items, entries, tmp_path, str(target), Timing(), 30 * 3600)
    assert not target.exists()
    (tmp_path / "1.wav").write_bytes(b"no sound")
    with pytest.raises(OutputError, match="cannot be read .*: delete it"):
        timeline.dub(items, entries, tmp_path, str(target), Timing(), 2)
    assert not target.exists()


def test_other_times_are_not_in_the_hash_without_timed():
    items = job_of([(0, 1, "Hello.")]).items
    moved = [dataclasses.replace(item, end=2.0) for item in items]
    hashes = [
        prepare(one, ["1.wav"], "m", lambda voice: "v", stretch=stretch)[0].settings_hash
        for one in (items, moved)
        for stretch in (None, 1.25)
    ]
    assert hashes[0] == hashes[2] and len(set(hashes)) == 3


def test_what_would_be_made_has_its_times(tmp_path):
    (tmp_path / "film.srt").write_bytes(srt([(1, 2.5, "Hello."), (3, 4, "[music]")]))
    command = ["batch", str(tmp_path / "film.srt"), "--model", "pico", "--rate", "0.9", "--dry-run"]
    timed = [*command, "--timed", "--join", "dub.wav"]
    lines = CliRunner().invoke(app, timed).stdout.splitlines()
    assert lines[0] == "00:00:01.000 --> 00:00:02.500  1  (rate 0.9)  Hello."
    assert lines[1].startswith("00:00:03.000 --> 00:00:04.000") and "pause" in lines[1]
    assert CliRunner().invoke(app, command).stdout.splitlines()[0] == "1  (rate 0.9)  Hello."
    first = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout.splitlines()[0])
    assert (first["start"], first["end"], first["rate"]) == (1, 2.5, 0.9)


def test_the_report_is_a_table_and_events(capsys):
    fits = [CueFit("1", 1, 1.0, 2.0, Fit.NATURAL, 1.0, 0.5, 0.0, 0.0)] * 60
    fits += [CueFit("2", 61, 3661.5, 3662.5, Fit.CUT, 1.25, 1.0, 0.0, 0.25)]
    dubbing.report(Reporter(), fits, as_json=True)
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 61
    last = json.loads(shown.out.splitlines()[-1])
    assert (last["event"], last["fit"], last["lost"], last["start"]) == ("cue", "cut", 0.25, 3661.5)
    assert shown.err.splitlines() == [
        "cue  start         length  speech  rate  fit",
        "2    01:01:01.500  1.00 s  1.00 s  1.25  cut, 0.25 s lost",
        "61 cues: 60 natural, 1 cut",
    ]
    dubbing.report(Reporter(verbose=True), fits, as_json=False)
    assert len(capsys.readouterr().err.splitlines()) == 63


def test_a_column_of_rates():
    job = job_file.read("a.csv", b"text,rate\nOne.,0.8\nTwo.,\n", Sampling(), rate=1.5)
    assert [item.rate for item in job.items] == [0.8, 1.5]
    assert job_file.read("a.csv", b'text;rate\nOne.;"1,2"\n', Sampling()).items[0].rate == 1.2
    for cell in ("fast", "3", "nan"):
        with pytest.raises(InputError, match="row 2: rate is"):
            job_file.read("a.csv", f"text,rate\nOne.,{cell}\n".encode(), Sampling())
    hashes = {
        prepare(one.items, ["1.wav"], "m", lambda voice: "v")[0].settings_hash
        for one in (
            job_file.read("a.txt", b"One.", Sampling(), rate=rate) for rate in (1.0, 1.0, 1.1)
        )
    }
    assert len(hashes) == 2, "another rate is another result"
