from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from chatterbox_opt.audio.files import check_writable, output_format, writer
from chatterbox_opt.errors import InputError, OutputError

WAVE = (np.sin(np.arange(24_000) / 15) * 0.5).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "subtype", "format_", "expected"),
    [
        ("a.wav", None, "WAV", "PCM_16"),
        ("a.WAV", "float", "WAV", "FLOAT"),
        ("a.flac", "PCM_24", "FLAC", "PCM_24"),
        ("a.ogg", None, "OGG", "VORBIS"),
        ("a.mp3", None, "MP3", "MPEG_LAYER_III"),
        ("-", None, "WAV", "PCM_16"),
    ],
)
def test_written_format_and_subtype(tmp_path, name, subtype, format_, expected):
    assert output_format(name, subtype) == (format_, expected)
    if name == "-":
        return
    path = tmp_path / name
    with writer(str(path), subtype) as sink:
        sink.write(WAVE[:10_000])
        sink.write(WAVE[10_000:])
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == (
        format_,
        expected,
        24_000,
        1,
    )
    assert abs(info.frames - 24_000) <= (0 if format_ in ("WAV", "FLAC") else 2_500)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.aac", "a", "a.wav.txt", ".wav"])
def test_unknown_extension_error_lists_known_ones(name):
    with pytest.raises(InputError, match=r"\.wav, \.flac, \.ogg, \.mp3"):
        output_format(name)


def test_a_subtype_that_cannot_be_written_is_refused_at_once():
    with pytest.raises(InputError, match="WAV with subtype 'MPEG_LAYER_III' cannot be written"):
        output_format("a.wav", "mpeg_layer_iii")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a", "a.opus"])
def test_samples_of_any_layout_in_memory_are_written(tmp_path, name):
    wave = np.random.default_rng(0).uniform(-0.1, 0.1, 48_000).astype(np.float32)
    for path, samples in (("1" + name, wave[::2].copy()), ("2" + name, wave[::2])):
        with writer(str(tmp_path / path)) as sink:
            sink.write(samples)
    one, two = (tmp_path / f"{number}{name}" for number in (1, 2))
    assert one.stat().st_size == two.stat().st_size > 1000


def test_unknown_subtype_error_lists_known_ones():
    with pytest.raises(InputError, match="it has PCM_16, PCM_24"):
        output_format("a.wav", "PCM_99")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_exception_leaves_the_old_file_unchanged(tmp_path, error):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    with pytest.raises(error), writer(str(path)) as sink:
        sink.write(WAVE)
        raise error
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


def test_full_disk_raises_and_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OutputError, match="No space left"),
        writer(str(tmp_path / "out.wav")) as sink,
    ):
        sink.write(WAVE)
    assert not list(tmp_path.iterdir())


def test_full_disk_is_named_where_libsndfile_says_system_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, data):
        raise soundfile.LibsndfileError(2)

    monkeypatch.setattr(soundfile.SoundFile, "write", write)
    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "out.wav"
    with pytest.raises(OutputError, match=rf"'{path}' \(No space left on device\)"):
        with writer(str(path)) as sink:
            sink.write(WAVE)
    assert not list(tmp_path.iterdir())


def test_long_chunk_does_not_crash_vorbis(tmp_path):
    """libsndfile crashes on a block of 3.9 M frames (163 s, the longest possible chunk)."""
    with writer(str(tmp_path / "long.ogg")) as sink:
        sink.write(np.zeros(4096 * 960, np.float32))
    assert soundfile.info(tmp_path / "long.ogg").frames == 4096 * 960


def test_file_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with writer(str(tmp_path / "out.wav")) as sink:
            sink.write(WAVE)
    finally:
        os.umask(old)
    assert (tmp_path / "out.wav").stat().st_mode & 0o777 == 0o644


def test_missing_directory_or_directory_as_file_raises(tmp_path):
    with pytest.raises(InputError, match="make it first"):
        check_writable(str(tmp_path / "no" / "out.wav"))
    (tmp_path / "dir.wav").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        check_writable(str(tmp_path / "dir.wav"))
    check_writable("-")
    check_writable("out.wav")


def test_read_only_directory_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root can write everywhere
    with pytest.raises(InputError, match="cannot be written to"):
        check_writable(str(tmp_path / "out.wav"))


def write(path) -> None:
    check_writable(str(path))
    output_format(str(path))
    with writer(str(path)) as sink:
        sink.write(WAVE)


@pytest.mark.parametrize("existing", [True, False])
@pytest.mark.parametrize("link_of", [Path.absolute, lambda target: Path("../real", target.name)])
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path, existing, link_of):
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    target = tmp_path / "real" / "a.wav"
    if existing:
        target.write_bytes(b"old")
    first, second = tmp_path / "links" / "1.wav", tmp_path / "2.wav"
    first.symlink_to(link_of(target))
    second.symlink_to(first)
    write(second)
    assert first.is_symlink() and second.is_symlink() and not target.is_symlink()
    assert soundfile.info(target).frames == len(WAVE)
    assert sorted(p.name for p in tmp_path.rglob("*") if not p.is_dir()) == [
        "1.wav",
        "2.wav",
        "a.wav",
    ]


def test_symbolic_links_that_lead_nowhere_are_errors(tmp_path):
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    with pytest.raises(InputError, match="points to itself"):
        check_writable(str(tmp_path / "loop.wav"))
    (tmp_path / "gone.wav").symlink_to(tmp_path / "no" / "a.wav")
    with pytest.raises(InputError, match="make it first"):
        check_writable(str(tmp_path / "gone.wav"))
    (tmp_path / "dir.wav").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a directory"):
        check_writable(str(tmp_path / "dir.wav"))


@pytest.mark.parametrize("name", ["pipe", "pipe.wav", "pipe.flac", "link.wav"])
def test_a_named_pipe_is_written_to(tmp_path, name):
    fifo = tmp_path / ("pipe.fifo" if name == "link.wav" else name)
    os.mkfifo(fifo)
    if name == "link.wav":
        (tmp_path / name).symlink_to(fifo)
    received = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    write(tmp_path / name)
    reader.join()
    assert fifo.is_fifo()
    assert soundfile.info(io.BytesIO(received[0])).format == ("FLAC" if "flac" in name else "WAV")
    assert len(list(tmp_path.iterdir())) == (2 if name == "link.wav" else 1)


def test_devices_are_written_to_and_stay():
    before = os.stat("/dev/null")
    write("/dev/null")
    assert os.path.samestat(before, os.stat("/dev/null"))
    with pytest.raises(OutputError, match="No space left"):
        write("/dev/full")


def test_open_files_are_written_to_by_their_number(tmp_path, capfdbinary):
    with (tmp_path / "a").open("wb") as file:
        file.write(b"before ")
        file.flush()
        write(f"/dev/fd/{file.fileno()}")
    assert (tmp_path / "a").read_bytes().startswith(b"before RIFF")
    write("/dev/stdout")
    write("-")
    assert capfdbinary.readouterr().out.count(b"RIFF") == 2
