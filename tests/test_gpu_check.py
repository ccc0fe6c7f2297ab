"""The card's own check, with a tape in place of the card: what it would find, it can find."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import tape
import torch
from test_graphs import capture

from chatterbox_opt import Engine
from chatterbox_opt.beside import Beside
from chatterbox_opt.decoding import Eager
from chatterbox_opt.graphs import Captured


@pytest.fixture
def engine(tiny):
    with Engine.load(str(tiny), "dev", device="cpu", watermark=False) as engine:
        capture(engine, tape.record)
        yield engine


def test_it_finds_an_exact_engine_good(check, engine):
    found = {
        "tokens": check.token_parity(engine, engine._speaker.way, Eager(), 2, 4, 10),
        "sound": check.sound_parity(engine, 0.76),
        "drift": check.drift(engine, 20, 4) | {"good": True},  # times mean nothing here
    }
    assert check.failed(found) == [], found
    assert found["tokens"]["tokens"] > 20


def test_it_finds_a_vocoder_that_hears_its_padding(check, engine, monkeypatch):
    monkeypatch.setattr("chatterbox_opt.rows.Masked.zero_", lambda tails, x: x)
    assert not check.sound_parity(engine, 0.76)["good"]


def test_it_finds_stale_recordings(check, engine, monkeypatch):
    """A way that forgets to look where the weights are."""
    monkeypatch.setattr("chatterbox_opt.graphs.addresses", lambda module: ())
    stale = Captured(tape.record)
    assert check.token_parity(engine, stale, Eager(), 1, 2, 6)["good"]
    for parameter in engine._speaker.residency.module("t3").parameters():
        parameter.data = parameter.data.roll(1, -1)
    assert not check.token_parity(engine, stale, Eager(), 1, 2, 6)["good"]


def test_its_figures_are_figures(check, engine):
    [row] = check.s3gen_by_length(engine, (0.5,))
    assert row["flow"] > 0 and row["vocoder"] > 0
    assert check.warm_up_seconds(engine)["third"] > 0
    with check.on_device(engine, "t3") as t3:
        [row] = check.decode_kernels(t3, tape.record, (128,))
        assert row["sdpa"] > 0 and row["products"] > 0
        shape, here = engine.checkpoint.shapes.flow, t3.like.device
        [row] = check.frame_kernels(shape, tape.record, here, (20,), fused=False)
        assert row["sdpa, all"] > 0 and row["sdpa, masked"] > 0
        [row] = check.prefill_by_length(engine, t3, {"some way": engine._speaker.way}, (50,))
        assert row["some way"] > 0
    many = engine.plan.slots
    assert set(check.throughput(engine, 2)) == {"1 at once", f"{many} at once, sound here"}


def test_it_compares_sound_made_beside_t3(check, engine):
    engine.plan = replace(engine.plan, sound="beside", slots=3)
    engine._speaker.sound, engine._speaker.group = Beside(), 2
    assert check.beside_parity(engine, 6) == {"equal": 3, "of": 3, "kept": True, "good": True}
    rows = check.throughput(engine, 4)
    assert set(rows) == {
        "1 at once",
        "3 at once, sound here",
        "3 at once, sound beside",
        "overlap_speedup",
    }
    assert isinstance(engine._speaker.sound, Beside)
    engine._speaker.sound.end()
    assert not check.beside_parity(engine, 2)["good"], "it did not stay beside"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(check, capsys):
    with pytest.raises(check.typer.Exit):
        check.main()
    assert "no CUDA card" in capsys.readouterr().err


def test_what_was_found_before_it_ended_is_kept(check, monkeypatch, tmp_path):
    """A card may be lent for some minutes only."""

    def checks(model, device, say, sizes, found):
        found["tokens"] = {"good": True}
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(check.hardware, "probe", lambda _: check.hardware.Hardware("cuda", "x"))
    monkeypatch.setattr(check, "checks", checks)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            check.main(tmp_path / "found.json", model="a model")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "checks": {"tokens": {"good": True}}
    }
