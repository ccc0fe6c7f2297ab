"""The benchmark of the family on tiny weights: each kind's own text, upstream's own classes, the
row with Turbo's flow, and what limits a row."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import soundfile
import torch
from helpers import upstream_family
from helpers.upstream_family import NoAnalyzer
from typer.testing import CliRunner

from benchmarks import family
from chatterbox_opt.bench import backends, cold_start, report, roofline, runner, timing, upstream
from chatterbox_opt.bench.backends import OptimizedTarget
from chatterbox_opt.bench.timing import BenchJob, forced_tokens
from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.cli.application import app
from chatterbox_opt.config.model_config import NANO, TURBO
from chatterbox_opt.errors import ChatterboxOptError, InputError

KINDS = ("turbo", "nano", "multilingual")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        random_weights.make(home / kind, "tiny", 3, kind)
    return home


@pytest.fixture(scope="module", autouse=True)
def small_roofline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "SMALL_READ", 1 << 20)
        patch.setattr(roofline, "SMALL_GEMM", 64)
        yield


def job(directory, **more) -> BenchJob:
    return BenchJob(str(directory), "cpu", tokens=forced_tokens(0.4), **more)


@pytest.mark.parametrize(
    "kind",
    [kind if kind == "turbo" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_upstreams_class_is_measured_on_the_same_text_and_tokens(kind, made, monkeypatch):
    """Its stages get what ours get: text ids, number of tokens, silence at the end."""
    module = "mtl_tts" if kind == "multilingual" else "tts_turbo"
    chosen = job(made / kind, language="de" if kind == "multilingual" else None)
    monkeypatch.setattr(upstream, "check_size", lambda _: None)
    monkeypatch.setattr("chatterbox.models.t3.t3.AlignmentStreamAnalyzer", NoAnalyzer)
    tokenizer = import_module("chatterbox.models.tokenizers.tokenizer")
    for owner, name in (
        (tokenizer, "hf_hub_download"),
        (tokenizer.ChineseCangjieConverter, "_init_segmenter"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # is changed, and comes back
    upstream_family._sized(import_module(f"chatterbox.{module}"), made / kind, monkeypatch)
    if kind == "multilingual":
        sized = import_module("chatterbox.mtl_tts").T3Config
        sized.multilingual = classmethod(lambda cls: cls(2454))
    theirs, ours = upstream.UpstreamTarget(chosen, ""), OptimizedTarget(chosen, "float32")
    drawn, codes = [], []
    name = "inference" if kind == "multilingual" else "inference_turbo"
    inference, flow = getattr(theirs._tts.t3, name), theirs._tts.s3gen.flow_inference

    def counted(**options):
        drawn.append(inference(**options).shape[1])

    def seen(tokens, **options):
        codes.append(tokens[0].tolist())
        return flow(tokens, **options)

    setattr(theirs._tts.t3, name, counted)
    theirs._tts.s3gen.flow_inference = seen
    seconds = theirs.run()
    assert set(seconds) == set(runner.STAGES)
    assert drawn == [1, len(chosen.tokens)], "it never stops by itself"
    silence = [4299] * 3 if kind != "multilingual" else []
    assert codes == [[*chosen.tokens, *silence]]
    ids = []
    tokenizer = ours._pipeline.decoder.tokenizer
    monkeypatch.setattr(
        backends, "text_tokens", lambda *given: ids.append(tokenizer.encode(*given[1:])) or
        torch.tensor(ids[-1])
    )  # fmt: skip
    quality = ours.quality()
    expected = theirs._ids()[0].tolist()
    assert ids[0] == (expected[1:-1] if kind == "multilingual" else expected)
    assert quality["mel"].shape[1] == 2 * (len(chosen.tokens) + len(silence))


def test_upstreams_class_of_another_size_is_refused(made):
    for kind in KINDS:
        with pytest.raises(InputError, match="plain Chatterbox cannot load"):
            upstream.UpstreamTarget(job(made / kind), "")


def test_a_kind_gets_the_files_under_the_names_that_upstream_looks_for(made):
    nano = registry.locate(str(made / "nano"))
    with upstream.renamed(nano, upstream.like(nano.config)) as directory:
        names = {path.name for path in directory.iterdir()}
        assert {"t3_turbo_v1.safetensors", "vocab.json", "conds.pt"} <= names
        assert (directory / "t3_turbo_v1.safetensors").samefile(nano.t3)
    assert not directory.exists() and nano.t3.exists()


def run(*args):
    result = CliRunner().invoke(app, ["bench", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


class InProcess:
    """A row without a process of its own."""

    def __init__(self, job, name):
        self._target = OptimizedTarget(job, name)
        self.name, self.laps, self.reads, self.load_seconds = name, [], [], 1.0
        self.dtype, self.plan, self.warm_ups = self._target.dtype, self._target.plan, 1
        self.run, self.usage, self.attention = self._target.run, {"peak_rss_mib": 1}, []

    def finish(self, *, compare=True):
        self.quality = self._target.quality() if compare else {}

    def kill(self):
        self._target.engine.close()


def test_a_row_with_turbos_flow_and_what_limits_each(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RowProcess", InProcess)
    file = tmp_path / "report.json"
    result = run("--model", tiny, "--rows", "float32,float32+flow", "--seconds", 0.4, "--runs", 1,
                 "--device", "cpu", "-o", file)  # fmt: skip
    assert "limit" in result.stdout
    own, other = json.loads(file.read_text())["rows"]
    assert other["name"] == "float32+flow" and "flow of" in other["plan"]
    assert "flow of" not in own["plan"]
    assert other["quality"]["top1"] == 1, "T3 is the same"
    assert other["quality"]["log_mel_cosine"] == pytest.approx(1), "compared with itself"
    for row in (own, other):
        assert sum(row["shares"].values()) == pytest.approx(1)
        largest = max(row["shares"], key=row["shares"].get)
        assert row["limit"] == f"{largest} {row['shares'][largest]:.0%}"


def test_the_flow_row_is_compared_with_its_own_kind():
    class Row:
        def __init__(self, name, mel):
            self.name, self.dtype, self.plan, self.usage = name, "float32", "", {}
            self.laps = [dict.fromkeys(runner.STAGES, 1.0)]
            self.reads, self.load_seconds, self.attention = [10.0], 1.0, []
            self.quality = {"logits": torch.eye(3), "mel": mel}

    facts = {"t3_weights_per_step": 100}
    one, two = torch.ones(80, 2), torch.linspace(-1, 1, 160).view(80, 2)
    rows = [Row("float32", one), Row("int8+flow", two)]
    table = runner._table(BenchJob("x", tokens=(1, 2)), facts, rows)
    assert table[1]["quality"]["log_mel_cosine"] is None
    assert table[1]["quality"]["top1"] == 1
    rows.append(Row("float32+flow", two))
    table = runner._table(BenchJob("x", tokens=(1, 2)), facts, rows)
    assert table[1]["quality"]["log_mel_cosine"] == pytest.approx(1)


def test_which_rows_and_weights_there_are(tiny, made, monkeypatch):
    monkeypatch.setattr(registry, "must_download", lambda model: None)
    monkeypatch.setattr(runner.flows, "must_download", lambda flow: "something")
    assert not runner.has_flow_row("chatterbox", None), "Turbo is not here"
    assert runner.has_flow_row(str(tiny), None), "it is random: a random flow is made"
    assert runner.has_flow_row("chatterbox", str(made / "turbo"))
    assert not runner.has_flow_row("pico", None)
    assert not runner.has_flow_row(str(made / "nano"), None)
    with pytest.raises(InputError, match="speech tokens of its own"):
        runner.has_flow_row("pico", "turbo")
    monkeypatch.setattr(runner.flows, "must_download", lambda flow: None)
    assert runner.has_flow_row("multilingual", None)
    rows = runner.choose_rows(None, [], "cpu", tiny=True, flow=True)
    assert rows == ["float32", "bfloat16", "int8", "int4", "int8+flow"]
    with pytest.raises(InputError, match="unknown model 'tubro'"):
        with runner.weights("tubro", tiny=True, on_progress=print):
            pass
    with runner.weights(str(tiny), tiny=True, on_progress=print) as model:
        assert model == str(tiny)
    with runner.weights("nano", tiny=True, on_progress=lambda _: None) as model:
        assert registry.locate(model).kind.name == "nano"
    with runner.flow_weights(str(tiny), None, ["float32"], print) as flow:
        assert flow == "turbo", "no row has it"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--stream", "--flow", "turbo"], "are for rows, not for --stream"),
        (["--language", "auto"], "is a code here"),
        (["--model", "nano", "--flow", "no/such"], "'nano' has a two-step flow of its own"),
        (["--model", "pico", "--language", "de", "--rows", "float32"], "does not know the language"),
    ],
)  # fmt: skip
def test_usage_errors(args, message):
    with pytest.raises(InputError, match=message):
        run("--quick", *args)


def test_weights_of_a_step():
    layer = 4 * 1024**2 + 2 * 1024 * 4096
    assert roofline.weights_per_step(TURBO.t3) == 24 * layer + 6563 * 1024
    assert roofline.weights_per_step(NANO.t3) == 12 * (12 * 768**2) + 6563 * 768


def test_cold_starts_of_each_kind(made, monkeypatch):
    with pytest.raises(InputError, match="has no program for nano"):
        cold_start.check(job(made / "nano"), ["upstream"])
    cold_start.check(job(made / "nano"), ["float32"])
    command = cold_start._upstream_command(job(made / "multilingual"), made / "x.wav")
    assert command[:2] == [sys.executable, "-c"] and command[-1] == "en"
    assert command[4] == "ChatterboxMultilingualTTS"
    command = cold_start._upstream_command(job(made / "turbo"), made / "x.wav")
    assert command[3:7] == ["chatterbox.tts_turbo", "ChatterboxTurboTTS", "inference_turbo", "max_gen_len"]  # fmt: skip
    given = cold_start._synth_command(job("m", flow="F", language="de"), "int8+flow", made)
    assert given[given.index("--flow") + 1] == "F" and given[given.index("--language") + 1] == "de"


def test_the_example_limits_upstreams_own_program(tmp_path):
    """With modules in place of chatterbox-tts and torch."""
    (tmp_path / "torch.py").write_text("def manual_seed(seed): pass\n")
    (tmp_path / "fake.py").write_text(
        "import numpy\n"
        "class Wave:\n"
        "    def __init__(self, count): self.count = count\n"
        "    def numpy(self): return numpy.zeros(self.count)\n"
        "class T3:\n"
        "    def draw(self, **given): return given['limit']\n"
        "class Fake:\n"
        "    sr = 24000\n"
        "    @classmethod\n"
        "    def from_local(cls, directory, device):\n"
        "        one = cls(); one.t3 = T3(); return one\n"
        "    def generate(self, text, language):\n"
        "        assert (text, language) == ('Hello.', 'de')\n"
        "        return [Wave(self.t3.draw(limit=1000))]\n"
    )
    output = tmp_path / "out.wav"
    words = ["fake", "Fake", "draw", "limit", "D", "cpu", "Hello.", "48", str(output), "de"]
    subprocess.run([sys.executable, "-c", cold_start.EXAMPLE, *words], cwd=tmp_path, check=True)
    assert soundfile.info(str(output)).frames == 48


def test_old_reports_have_no_shares():
    row = {"name": "x", "synthesis_seconds": 1.0}
    headings, _ = report.cells({"rows": [row]})
    assert headings == ["row", "total s"]
    assert timing.forced_tokens(0.4) == forced_tokens(0.4)


def test_the_familys_table(made, tiny, tmp_path, monkeypatch):
    """Upstream's row has no tiny size, so it is left out, and the ratios to it; kept is what was
    there before."""

    def row(job, name):
        if name == "upstream":
            raise ChatterboxOptError("no such size")
        return InProcess(job, name)

    def copied(command, check):
        shutil.copytree(made / command[command.index("--kind") + 1], command[5])

    monkeypatch.setattr(family, "RowProcess", row)
    monkeypatch.setattr(family.subprocess, "run", copied)
    monkeypatch.setenv(family.VARIABLE, "false")
    shutil.copytree(tiny, tmp_path / "w" / "chatterbox")
    labels = "turbo:upstream,turbo:int8,nano:int8,chatterbox:int8,chatterbox:int8+flow"
    family.main(tmp_path / "w", "tiny", 0.2, 1, labels, "x", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "x.json").read_text())
    assert [one["name"] for one in found["rows"]] == labels.split(",")[1:]
    assert found["failed"] == {"turbo:upstream": "no such size"}
    assert len(found["ratios"]) == 3 and all(one["median"] > 0 for one in found["ratios"])
    plans = {one["name"]: one["plan"] for one in found["rows"]}
    assert f"flow of {tmp_path / 'w' / 'turbo'}" in plans["chatterbox:int8+flow"]
    table = (tmp_path / "out" / "x.md").read_text()
    assert "| nano:int8" in table and "left out: turbo:upstream: no such size" in table
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["chatterbox"]
    with pytest.raises(InputError, match="there is no row 'turbo:int9'"):
        family.main(tmp_path / "w", rows="turbo:int9")


def test_a_ratio_is_taken_within_a_round():
    def lap(decode):
        return dict.fromkeys(runner.STAGES, 1.0) | {"decode": decode}

    laps = {"turbo:int8": [lap(1.0), lap(2.0), lap(1.0)], "turbo:upstream": [lap(8.0), lap(20.0), lap(9.0)]}  # fmt: skip
    whole, of_t3 = family.ratios(laps)
    assert (of_t3["median"], of_t3["least"], of_t3["most"]) == (9.0, 8.0, 10.0) and of_t3["met"]
    assert whole["median"] == pytest.approx(13 / 5) and not whole["met"]
