"""Saved voices are the user's data: where they are, and that none is ever lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest
import typer
from helpers.common import SAMPLE
from typer.testing import CliRunner

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli import options
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.doctor import machine
from chatterbox_opt.errors import VoiceError
from chatterbox_opt.utils import atomic_file
from chatterbox_opt.voices import saved_voices
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import VoiceStore, content_key, default_store


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's own directories, without variables that name others."""
    import platformdirs

    monkeypatch.delenv("CHATTERBOX_VOICE_CACHE", raising=False)
    monkeypatch.delenv("CHATTERBOX_VOICES", raising=False)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name: str(tmp_path / "data" / name))
    return tmp_path


def invoke(*args: str):
    return CliRunner().invoke(app, ["voices", *args])


def recordings(directory: Path, **content: str) -> Path:
    directory.mkdir(parents=True)
    for name, text in content.items():
        (directory / f"{name}.wav").write_text(text)
    return directory


def texts(store: VoiceStore) -> dict[str, str]:
    return {name: path.read_text() for name, path in store.names().items()}


@pytest.mark.parametrize(
    ("option", "voices", "cache", "expected"),
    [
        (None, None, None, "data/chatterbox-opt/voices"),
        (None, "mine", None, "mine"),
        (None, None, "cached", "cached/named"),
        (None, "mine", "cached", "mine"),
        ("given", "mine", "cached", "given/named"),
        ("given", None, None, "given/named"),
        (None, "", "", "data/chatterbox-opt/voices"),
    ],
)
def test_where_saved_voices_are(home, monkeypatch, option, voices, cache, expected):
    for name, value in (("CHATTERBOX_VOICES", voices), ("CHATTERBOX_VOICE_CACHE", cache)):
        if value is not None:
            monkeypatch.setenv(name, str(home / value) if value else "")
    store = default_store(home / option if option else None)
    assert store.saved_directory == home / expected
    computed = option or cache or "cache/chatterbox-opt/voices"
    assert store.directory == home / computed


def test_voices_of_an_older_version_are_moved_once(home, caplog):
    old = recordings(home / "cache" / "chatterbox-opt" / "voices" / "named", anna="a", ben="b")
    (old / ".notes").write_text("not a voice")
    store = default_store()
    for _ in range(2):
        assert texts(store) == {"anna": "a", "ben": "b"}
    assert [path.name for path in old.iterdir()] == [".notes"]
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "moved from" in line
    assert line.endswith("anna, ben")


def test_a_name_that_is_taken_gets_a_number(home, caplog):
    recordings(home / "cache" / "chatterbox-opt" / "voices" / "named", anna="old", same="s")
    recordings(home / "data" / "chatterbox-opt" / "voices", anna="new", same="s")
    assert texts(default_store()) == {"anna": "new", "anna-2": "old", "same": "s"}
    assert "anna (as anna-2)" in caplog.text


def test_a_full_disk_loses_no_voice(home, monkeypatch):
    old = recordings(home / "cache" / "chatterbox-opt" / "voices" / "named", anna="a")
    monkeypatch.setattr(
        atomic_file.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full"))
    )
    assert texts(default_store()) == {"anna": "a"}
    assert (old / "anna.wav").exists()
    monkeypatch.undo()


def test_a_kill_between_copy_and_deletion_loses_no_voice(home, monkeypatch):
    old = recordings(home / "cache" / "chatterbox-opt" / "voices" / "named", anna="a")
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        default_store().names()
    monkeypatch.undo()
    target = home / "data" / "chatterbox-opt" / "voices"
    saved_voices.move(old, target)
    assert {path.name: path.read_text() for path in target.glob("anna*")} == {"anna.wav": "a"}
    assert not old.exists()


def test_several_processes_move_at_once(home):
    names = {f"voice{i}": str(i) for i in range(30)}
    old = recordings(home / "old", **names)
    threads = [
        threading.Thread(target=saved_voices.move, args=(old, home / "new")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = saved_voices.voices(home / "new")
    assert {name: path.read_text() for name, path in found.items()} == names
    assert not old.exists()


def test_the_commands_keep_recordings_apart_from_the_cache(home):
    added = invoke("add", "anna", str(SAMPLE), "--json")
    assert added.exit_code == 0, added.output
    path = home / "data" / "chatterbox-opt" / "voices" / "anna.flac"
    assert json.loads(added.stdout) == {"name": "anna", "path": str(path)}
    shutil.rmtree(home / "cache", ignore_errors=True)
    assert default_store().find("anna") == path

    rows = json.loads(invoke("list", "--json").stdout)
    assert rows[0] == {"name": "anna", "kind": "saved", "path": str(path)}
    assert {"name": "ada", "kind": "built-in", "model": "pico"} in rows

    kept = invoke("clear", "--yes")
    assert "1 saved voices kept" in kept.output
    assert path.exists()
    assert "removed anna" in invoke("remove", "anna").output
    assert not path.exists()


def test_clearing_saved_voices_is_confirmed_separately(home, monkeypatch):
    invoke("add", "anna", str(SAMPLE))
    monkeypatch.setattr(
        "chatterbox_opt.cli.voices._confirm", lambda question, **_: asked.append(question)
    )
    asked: list[str] = []
    assert "1 saved voices removed" in invoke("clear", "--saved", "--yes").output
    assert len(asked) == 2
    assert "anna" in asked[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("add", "ada", str(SAMPLE)), "choose another name, such as ada-2"),
        (("remove", "ada"), "comes with --model pico"),
        (("remove", "nobody"), "no saved voice 'nobody'"),
    ],
)
def test_a_wrong_name_is_refused(home, args, message):
    result = invoke(*args)
    assert message in str(result.exception)
    assert isinstance(result.exception, VoiceError)
    assert not list(home.rglob("*.flac"))


def test_a_saved_voice_that_hides_the_models_own_is_warned_of_once(home, caplog):
    store = default_store()
    store.add("ada", SAMPLE)
    library = VoiceLibrary(registry.locate("pico"), store)
    assert library.voice("ada") is library.voice("ada")
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "hides the model's own" in line
    assert "voices add ada-2" in line
    assert "hides the voice of pico" in invoke("list").output


def test_what_a_pipe_sends_is_stored(home):
    os.mkfifo(home / "pipe")
    writer = threading.Thread(target=(home / "pipe").write_bytes, args=(SAMPLE.read_bytes(),))
    writer.start()
    result = invoke("add", "anna", str(home / "pipe"))
    writer.join()
    assert result.exit_code == 0, result.output
    assert default_store().find("anna").read_bytes() == SAMPLE.read_bytes()


def test_an_unusable_recording_is_not_stored(home):
    (home / "a.wav").write_bytes(b"RIFF")
    assert "cannot be read as audio" in str(invoke("add", "anna", str(home / "a.wav")).exception)
    assert not default_store().names()


@pytest.mark.parametrize("source", ["/dev/zero", "pipe"])
def test_what_cannot_be_read_twice_has_no_key(home, source):
    os.mkfifo(home / "pipe")
    with pytest.raises(VoiceError):
        content_key(home / source, "model")


def test_a_pipe_is_found_by_a_bare_name(home, monkeypatch):
    monkeypatch.chdir(home)
    os.mkfifo("pipe")
    assert default_store().find("pipe") == Path("pipe")


def test_a_command_gets_a_copy_of_a_pipe_that_is_deleted_at_its_end(home):
    seen: list[Path] = []
    command = typer.Typer()

    @command.command()
    def show(voice: options.Voice = None) -> None:
        seen.append(Path(voice))
        assert seen[0].read_bytes() == SAMPLE.read_bytes()

    os.mkfifo(home / "pipe")
    writer = threading.Thread(target=(home / "pipe").write_bytes, args=(SAMPLE.read_bytes(),))
    writer.start()
    assert CliRunner().invoke(command, ["--voice", str(home / "pipe")]).exit_code == 0
    writer.join()
    assert not seen[0].exists()


def test_what_a_pipe_sends_is_checked_before_a_model_is_loaded(home):
    os.mkfifo(home / "pipe")
    writer = threading.Thread(target=(home / "pipe").write_bytes, args=(b"no sound" * 99,))
    writer.start()
    result = CliRunner().invoke(app, ["synth", "hi", "--model", "nope", "--voice", str(home / "pipe")])  # fmt: skip
    writer.join()
    assert f"'{home / 'pipe'}' cannot be read as audio" in str(result.exception)


def test_two_recordings_of_a_name_after_a_kill_are_one_voice(tmp_path):
    """Killed after the new recording was in place, and before the older one was deleted."""
    store = VoiceStore(tmp_path)
    for number, extension in enumerate(("wav", "flac", "ogg")):
        recording = tmp_path / f"r{number}.{extension}"
        recording.write_bytes(bytes([number]))
        if number < 2:
            store.saved_directory.mkdir(exist_ok=True)
            (store.saved_directory / f"anna.{extension}").write_bytes(b"older")
    (store.saved_directory / "anna-2.wav").write_bytes(b"another")
    store.add("anna", tmp_path / "r1.flac")
    assert sorted(p.name for p in store.saved_directory.iterdir()) == ["anna-2.wav", "anna.flac"]
    (store.saved_directory / "anna.wav").write_bytes(b"older")
    store.remove("anna")
    assert [p.name for p in store.saved_directory.iterdir()] == ["anna-2.wav"]


def with_two_recordings(directory: Path) -> VoiceStore:
    """A store in which one of them has no extension, as a pipe's has, and another voice."""
    store = VoiceStore(directory)
    store.saved_directory.mkdir(parents=True)
    for name in ("anna", "anna.wav", "bob"):
        (store.saved_directory / name).write_bytes(b"sound\0")
    (store.saved_directory / "no voice.txt").touch()
    return store


def test_a_voice_without_an_extension_is_replaced(tmp_path):
    store = with_two_recordings(tmp_path / "store")
    store.add("anna", SAMPLE)
    assert {path.name for path in store.saved_directory.glob("anna*")} == {"anna.flac"}
    (tmp_path / "pipe").write_bytes(b"newer\0")
    assert store.add("anna", tmp_path / "pipe") == store.find("anna")
    assert {path.name for path in store.saved_directory.glob("anna*")} == {"anna"}


def test_a_removed_voice_is_gone(tmp_path):
    store = with_two_recordings(tmp_path)
    store.remove("anna")
    assert list(store.names()) == ["bob"]
    assert {path.name for path in store.saved_directory.iterdir()} == {"bob", "no voice.txt"}


def test_cleared_voices_are_gone(tmp_path):
    store = with_two_recordings(tmp_path)
    assert (store.clear_saved(), store.names()) == (2, {})
    assert [path.name for path in store.saved_directory.iterdir()] == ["no voice.txt"]


def test_a_removed_voice_is_gone_where_it_could_not_be_moved_from_too(home, monkeypatch):
    old = recordings(home / "cache" / "chatterbox-opt" / "voices" / "named", anna="older", bob="b")
    recordings(home / "data" / "chatterbox-opt" / "voices", anna="newer")
    monkeypatch.setattr(saved_voices, "move", lambda *_: None)
    store = default_store()
    store.remove("anna")
    assert list(store.names()) == ["bob"]
    assert (store.clear_saved(), store.names(), list(old.iterdir())) == (1, {}, [])


def test_a_replaced_voice_is_gone_where_it_could_not_be_moved_from_too(home, monkeypatch):
    old = recordings(home / "cache" / "chatterbox-opt" / "voices" / "named", anna="older")
    shutil.copy(SAMPLE, home / "new.wav")
    monkeypatch.setattr(saved_voices, "move", lambda *_: None)
    target = default_store().add("anna", home / "new.wav")
    assert target.exists() and not list(old.iterdir())


@pytest.mark.parametrize("spelling", ["{0}/named", "{0}/../cached/named", "link"])
def test_a_directory_that_is_the_caches_own_under_another_name(home, monkeypatch, spelling):
    cache = home / "cached"
    (cache / "named").mkdir(parents=True)
    (home / "link").symlink_to(cache / "named")
    monkeypatch.chdir(home)
    monkeypatch.setenv("CHATTERBOX_VOICE_CACHE", str(cache))
    monkeypatch.setenv("CHATTERBOX_VOICES", spelling.format("cached"))
    target = default_store().add("anna", SAMPLE)
    assert target.read_bytes() == SAMPLE.read_bytes()
    assert list(default_store().names()) == ["anna"]


def test_other_files_next_to_recordings_are_no_voices_and_are_kept(home):
    store = default_store()
    store.add("bob", SAMPLE)
    others = {"bob.txt": "what he says", "bob.json": "{}", "Makefile": "all:\n", "notes.": "x"}
    for name, content in others.items():
        (store.saved_directory / name).write_text(content)
    shutil.copy(SAMPLE, store.saved_directory / "ann")  # a recording without an extension
    assert list(store.names()) == ["ann", "bob"] and store.find("bob").suffix == SAMPLE.suffix
    store.add("bob", SAMPLE)
    store.remove("bob")
    assert store.clear_saved() == 1
    assert {path.name for path in store.saved_directory.iterdir()} == set(others)


def test_two_processes_that_save_one_name_lose_neither(home, monkeypatch):
    """With other extensions: each has written its file before the other deletes older ones."""
    shutil.copy(SAMPLE, home / "other.wav")
    store, copy, other = default_store(), shutil.copyfile, iter([home / "other.wav"])

    def copied(source, target):
        copy(source, target)
        for path in other:
            store.add("anna", path)

    monkeypatch.setattr(shutil, "copyfile", copied)
    store.add("anna", SAMPLE)
    assert store.find("anna").exists()


def test_of_several_recordings_of_a_name_the_latest_is_the_voice(home):
    store = default_store()
    first = store.add("anna", SAMPLE)
    for name, age in (("anna.wav", 50), ("anna.aac", 100)):
        shutil.copy(SAMPLE, store.saved_directory / name)
        os.utime(store.saved_directory / name, (1_000_000 - age,) * 2)
    assert store.find("anna") == first


def test_a_cache_of_another_user_is_not_used(home, monkeypatch, caplog):
    """As ``sudo`` with the user's home leaves it: a directory that he cannot enter."""
    closed = str(home / "cache")
    (home / "cache" / "chatterbox-opt" / "voices" / "named").mkdir(parents=True)

    def denied(path):
        if str(os.fspath(path)).startswith(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for name in ("stat", "lstat", "scandir", "listdir"):
        plain = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *a, plain=plain, **k: denied(path) or plain(path, *a, **k)
        )
    store = default_store()
    assert store.add("anna", SAMPLE) == store.find("anna")
    assert list(store.names()) == ["anna"] and store.computed() == 0
    assert store.load("0" * 40) is None
    assert machine.caches(store)["cache: voices"].startswith("0 files")
    assert caplog.text.count("named' cannot be read (Permission denied)") == 1
