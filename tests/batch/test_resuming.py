"""Files of earlier runs: matched by content, renamed, listed, and never mixed up by a kill."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.fake_engine import FakeEngine, manifest_lines, run_batch, tasks_of

from chatterbox_opt import Sampling
from chatterbox_opt.batch import job_file, manifest, resuming
from chatterbox_opt.batch.metadata import Metadata, write_metadata

LINES = ["One.", "Two two.", "Three three three."]


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(directory.glob("*.wav"))}


def size_of(text: str) -> int:
    return 44 + 480 * len(text)  # of a FakeEngine's wav


def test_an_inserted_line_makes_one_item_and_renames_the_others(tmp_path):
    run_batch(tmp_path, tasks_of(LINES))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.wav")}
    summary = run_batch(tmp_path, tasks_of(["A new line.", *LINES]), fake := FakeEngine())
    assert fake.ids == ["1"]
    assert (summary.skipped, summary.failed()) == (3, [])
    assert [e.text for e in summary.entries.values()] == [*LINES, "A new line."]
    for old, new in (("1", "2"), ("2", "3"), ("3", "4")):
        assert (tmp_path / f"{new}.wav").read_bytes() == before[f"{old}.wav"]
    assert run_batch(tmp_path, tasks_of(["A new line.", *LINES]), fake := FakeEngine()).skipped == 4
    assert not fake.ids
    assert not list(tmp_path.glob("*moves*"))


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (2, 0), (1,), (0, 0, 1)])
def test_lines_in_another_order_are_renamed(tmp_path, order):
    run_batch(tmp_path, tasks_of(LINES))
    lines = [LINES[i] for i in order]
    run_batch(tmp_path, tasks_of(lines), fake := FakeEngine())
    assert len(fake.ids) == len(lines) - len(set(lines))
    for number, line in enumerate(lines, 1):
        assert (tmp_path / f"{number}.wav").stat().st_size == size_of(line)


def test_ids_of_their_own_are_kept_apart(tmp_path):
    def items(*rows: tuple[str, str]) -> list[job_file.Item]:
        content = "\n".join(f'{{"id": "{id}", "text": "{text}"}}' for id, text in rows)
        read = job_file.read("a.jsonl", content.encode(), Sampling(seed=1)).items
        return resuming.prepare(read, [f"{i.id}.wav" for i in read], "m", lambda voice: "v")

    run_batch(tmp_path, items(("a", "One."), ("b", "Two.")))
    run_batch(tmp_path, items(("b", "Two."), ("c", "One.")), fake := FakeEngine())
    assert fake.ids == ["c"], "another id is another item"
    renamed = [resuming.dataclasses.replace(i, file=f"x{i.file}") for i in items(("b", "Two."))]
    run_batch(tmp_path, renamed, fake := FakeEngine())
    assert not fake.ids, "another name pattern renames"
    assert (tmp_path / "xb.wav").exists()


class Killed(BaseException):
    """As if the process had been killed: nothing is cleaned up."""


@pytest.mark.parametrize("steps", range(9))
def test_a_kill_while_renaming_mixes_nothing_up(tmp_path, monkeypatch, steps):
    run_batch(tmp_path, tasks_of(LINES))
    lines = [LINES[2], LINES[0], LINES[1]]
    real, left = os.replace, [steps]

    def replace(old, new):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        real(old, new)

    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", replace)
        if steps < 8:  # the list, three to temporary names, the list again, three to new names
            with pytest.raises(Killed):
                run_batch(tmp_path, tasks_of(lines))
    run_batch(tmp_path, tasks_of(lines), fake := FakeEngine())
    assert not fake.ids
    assert list(sizes(tmp_path).values()) == [size_of(line) for line in lines]
    assert not [p.name for p in tmp_path.iterdir() if "mov" in p.name or p.name.endswith(".part")]


def test_a_kill_between_renaming_and_a_new_file_mixes_nothing_up(tmp_path):
    run_batch(tmp_path, tasks_of(["One.", "Two."]))
    with manifest.open_manifest(tmp_path) as held:
        resuming.find_done(held, tasks_of(["New.", "One.", "Two."]))
    (tmp_path / "1.wav").write_bytes((tmp_path / "2.wav").read_bytes())  # of "New.", same length
    run_batch(tmp_path, tasks_of(["One.", "One.", "Two."]), fake := FakeEngine())
    assert fake.ids == ["1"], "its old line does not vouch for the new file"


def test_stale_files_are_those_that_the_manifest_knows(tmp_path):
    run_batch(tmp_path, tasks_of(LINES))
    (tmp_path / "mine.wav").write_bytes(b"of the user")
    (tmp_path / "3.wav").write_bytes(b"replaced by the user")
    items = tasks_of(LINES[:1])
    with manifest.open_manifest(tmp_path) as held:
        assert resuming.stale_files(held, items) == ["2.wav"]


def test_a_deleted_line_keeps_its_file_until_it_is_pruned(tmp_path):
    run_batch(tmp_path, tasks_of(LINES))
    run_batch(tmp_path, tasks_of(LINES[1:]), fake := FakeEngine())
    assert not fake.ids
    with manifest.open_manifest(tmp_path) as held:
        [stale] = resuming.stale_files(held, tasks_of(LINES[1:]))
    assert stale.startswith("1~") and (tmp_path / stale).stat().st_size == size_of(LINES[0])
    run_batch(tmp_path, tasks_of(LINES), fake := FakeEngine())
    assert not fake.ids, "the line came back"
    assert list(sizes(tmp_path).values()) == [size_of(line) for line in LINES]


def test_the_manifest_says_what_was_made(tmp_path):
    run_batch(tmp_path, tasks_of(["One.", "bad"]), model="pico int8")
    one, bad = manifest_lines(tmp_path)
    assert "language" in one and one["language"] is None
    assert (one["text"], one["voice"], one["model"], one["duration"]) == (
        "One.",
        None,
        "pico int8",
        0.04,
    )
    assert one["sampling"]["seed"] == 1 and one["sampling"]["temperature"] == 0.8
    assert (bad["text"], bad["status"]) == ("bad", "failed")


def test_metadata_for_data_sets(tmp_path):
    summary = run_batch(tmp_path, tasks_of(['Say "a|b", please.', "Two."]), model="m")
    entries = list(summary.entries.values())
    path = write_metadata(tmp_path, entries, Metadata.LJSPEECH)
    assert path.read_text() == '1|Say "a b", please.|Say "a b", please.\n2|Two.|Two.\n'
    write_metadata(tmp_path, entries, Metadata.CSV)
    assert path.read_text() == (
        "file_name,text,voice,duration,seed,model\n"
        '1.wav,"Say ""a|b"", please.",,0.18,1,m\n2.wav,Two.,,0.04,1,m\n'
    )


def test_a_default_and_the_same_number_are_one_setting():
    """And their hash is the one that manifests have had since before a model had defaults."""

    def settings(sampling):
        items = job_file.read("a.txt", b"One.", sampling).items
        [item] = resuming.prepare(items, ["1.wav"], "m", lambda voice: "v")
        return item.settings_hash

    assert settings(Sampling(seed=1)) == "bef9737433792c3bb547852b"
    assert settings(Sampling(seed=1, cfm_steps=10, cfg_weight=0.5)) == "bef9737433792c3bb547852b"
    assert settings(Sampling(seed=1, cfm_steps=2)) != "bef9737433792c3bb547852b"
