"""Values that callers get: one line as text, equal by content, saved completely or not at all."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from chatterbox_opt import Audio, Piece, Request, Result, Voice
from chatterbox_opt.audio import containers
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.errors import InputError, OutputError, TextError

WAVE = np.sin(np.arange(100_000, dtype=np.float32) / 20) / 2
AUDIO = Audio(WAVE, 24_000, 7, 104, {"t3": 0.5})
PIECE = Piece(WAVE[:24_000], "Hello\nthere.", 25, {"t3": 0.5})


def voice(seed: int = 0) -> Voice:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6561, (1, 150), generator=g)
    return Voice(torch.rand(1, 256, generator=g), ids, ids, torch.rand(1, 300, 80, generator=g),
                 torch.rand(1, 192, generator=g))  # fmt: skip


def test_each_is_one_short_line():
    found = [repr(value) for value in (
        voice(), AUDIO, PIECE, replace(PIECE, faults=("too fast",), attempts=3),
        Result("a", 7, (PIECE,) * 500), Result("a", 7, error=TextError("it is empty")),
    )]  # fmt: skip
    for line in found:
        assert "\n" not in line and "array" not in line and "tensor" not in line
        assert len(line) < 150
    assert "speaker=[1, 256]" in found[0]
    assert found[1] == "Audio(4.17 s, 24000 Hz, seed=7, tokens=104)"
    assert found[2] == r"Piece('Hello\nthere.', 1.00 s, tokens=25)"
    assert found[3].endswith("faults=('too fast',), attempts=3)")
    assert found[4] == "Result('a', seed=7, pieces=500, 500.00 s)"
    assert found[5] == "Result('a', seed=7, error=TextError('it is empty'))"
    assert "\n" not in repr(Request("a", "Hello.", voice()))


def test_voices_are_equal_by_content():
    one, other = voice(), voice(1)
    for same in (one, voice(), copy.deepcopy(one), pickle.loads(pickle.dumps(one)), one.to("cpu")):
        assert same == one and hash(same) == hash(one) and repr(same) == repr(one)
    assert one != other and repr(one) != repr(other) and one != "ada"
    assert {one: "a", other: "b", voice(): "c"} == {one: "c", other: "b"}
    for name, tensor in one.tensors().items():
        for changed in (tensor + 1, tensor.double(), tensor.reshape(-1)):
            assert replace(one, **{name: changed}) != one, name
    columns = replace(one, mel=one.mel.transpose(1, 2).contiguous().transpose(1, 2))
    assert not columns.mel.is_contiguous() and columns == one


def test_audio_is_equal_by_content_and_not_by_time():
    assert replace(AUDIO, samples=WAVE.copy(), seconds={"t3": 9.0}) == AUDIO
    assert replace(AUDIO, samples=-WAVE) != AUDIO
    assert replace(AUDIO, seed=8) != AUDIO and AUDIO != PIECE
    assert replace(PIECE, samples=PIECE.samples.copy()) == PIECE
    assert replace(PIECE, faults=("too slow",)) != PIECE
    assert Result("a", 7, (PIECE,)) == Result("a", 7, (copy.deepcopy(PIECE),))


@pytest.mark.parametrize("extension", containers.FORMATS)
def test_audio_is_saved_as_the_command_line_does(tmp_path, extension):
    AUDIO.save(tmp_path / f"a{extension}")
    AUDIO.save(str(tmp_path / f"B{extension.upper()}"))
    with audio_files.writer(str(tmp_path / f"c{extension}")) as sink:
        sink.write(WAVE)
    a, b, c = (path for path in sorted(tmp_path.iterdir(), key=lambda path: path.name.lower()))
    assert a.stat().st_size == b.stat().st_size == c.stat().st_size > 1000
    seconds = sum(map(len, containers.read_blocks(a, 2400))) / 24_000
    assert seconds == pytest.approx(AUDIO.duration, abs=0.1)


def test_a_subtype_may_be_chosen(tmp_path):
    AUDIO.save(tmp_path / "a.wav", "float")
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 24_000 and np.array_equal(samples, WAVE)


@pytest.mark.parametrize(
    ("path", "subtype"),
    [("a.aac", None), ("a", None), ("-", None), (b"a.wav", None), (None, None), (5, None), ("", None),
     ("a.wav", "PCM_99"), ("a.wav", 16), ("no/such/a.wav", None), (Path("folder.wav"), None)],
)  # fmt: skip
def test_wrong_arguments_of_save_leave_nothing(tmp_path, monkeypatch, capfdbinary, path, subtype):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(InputError):
        AUDIO.save(path, subtype)
    with pytest.raises(InputError, match="16000 Hz"):
        replace(AUDIO, sample_rate=16_000).save("a.wav")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.wav"]
    assert capfdbinary.readouterr().out == b""


def test_a_failure_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "a.wav"
    target.write_bytes(b"old")

    def write(self, wave):
        self._file.write(wave[:10])
        raise OSError("the disk is full")

    monkeypatch.setattr(containers.SoundfileSink, "write", write)
    with pytest.raises(OutputError, match="the disk is full"):
        AUDIO.save(target)
    assert target.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
