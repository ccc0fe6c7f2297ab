"""Files of all formats: as long as the samples, the same sound, and what they say about themselves."""

from __future__ import annotations

import errno
import io
import os
import threading

import av
import numpy as np
import pytest
from helpers.books import PNG
from helpers.sound import tone
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.audio import containers, files, tags
from chatterbox_opt.audio.tags import Chapter, Tags, one_line, read_cover
from chatterbox_opt.errors import InputError, OutputError

FRAME = {".mp3": 576, ".m4a": 1024, ".m4b": 1024}  # samples; the others are exact
TAGGED = [extension for extension in containers.FORMATS if containers.has_tags(extension)]


def written(path, wave, piece=50_000, **values):
    with files.writer(str(path), **values) as sink:
        for start in range(0, len(wave), piece):
            sink.write(wave[start : start + piece])
    return path


@pytest.mark.parametrize("extension", containers.FORMATS)
@settings(max_examples=5, deadline=None)
@given(samples=st.integers(4_000, 60_000), piece=st.integers(1_000, 30_000))
def test_the_decoded_sound_is_as_long_as_the_samples(extension, samples, piece, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / f"a{extension}"
    wave = tone(samples)
    blocks = list(containers.read_blocks(written(path, wave, piece), 2_400))
    assert {len(block) for block in blocks[:-1]} <= {2_400}
    sound = np.concatenate(blocks)
    assert abs(len(sound) - samples) <= FRAME.get(extension, 0)
    rest = min(len(sound), samples) - 600
    same = np.corrcoef(sound[1800:rest], wave[1800:rest])[0, 1]
    assert same > 0.99, "the sound, at its place"


@pytest.mark.parametrize("extension", TAGGED)
def test_tags_are_read_back(tmp_path, extension):
    ends = (12_000, 500_017, 960_000)  # 20.834 s: more than half a second behind a whole one
    titles = ("One", "Zwei – und 三", "3: <b>&amp;")
    chapters = tuple(map(Chapter, titles, (0, *ends), ends))
    path = tmp_path / f"a{extension}"
    written(path, tone(960_000), tags=Tags("A Title", "Ann Ümlaut", PNG, chapters))
    with av.open(str(path)) as container:
        noted = container.metadata | container.streams.audio[0].metadata
        assert (noted["title"], noted["artist"], noted["genre"]) == ("A Title", "Ann Ümlaut", "Audiobook")  # fmt: skip
        found = container.chapters()
        assert [chapter["metadata"]["title"] for chapter in found] == list(titles)
        starts = [float(chapter["start"] * chapter["time_base"]) for chapter in found]
        assert starts == pytest.approx([0, 0.5, 500_017 / 24_000], abs=0.001)
        assert float(found[-1]["end"] * found[-1]["time_base"]) == pytest.approx(40, abs=0.05)
        [picture] = container.streams.video
        assert bytes(next(container.demux(picture))) == PNG
    assert abs(sum(map(len, containers.read_blocks(path, 4_000))) - 960_000) <= 1024


def test_a_file_without_tags_has_none(tmp_path):
    for extension in TAGGED:
        with av.open(str(written(tmp_path / f"a{extension}", tone(9_000)))) as container:
            noted = container.metadata | container.streams.audio[0].metadata
            assert not {"title", "artist", "genre", "media_type"} & set(noted)
            assert not container.chapters() and not container.streams.video


def test_hundreds_of_chapters(tmp_path):
    chapters = tuple(Chapter(f"Chapter {i}", i * 240, i * 240 + 240) for i in range(600))
    path = written(tmp_path / "a.m4b", tone(600 * 240), tags=Tags(chapters=chapters))
    with av.open(str(path)) as container:
        found = container.chapters()
    assert [chapter["metadata"]["title"] for chapter in found] == [c.title for c in chapters]
    containers.check_tags(".mp3", Tags(chapters=chapters[:255]))
    with pytest.raises(InputError, match=r"256 chapters are more than the 255 .* give \.m4b"):
        containers.check_tags(".mp3", Tags(chapters=chapters[:256]))


@given(st.text(max_size=400))
def test_a_tag_is_one_short_line(text):
    line = one_line(text)
    assert len(line.encode()) <= tags.MAX_TITLE and line.isprintable()
    if text.isascii() and text.isprintable() and len(text) < 255:
        assert line == " ".join(text.split())


def test_covers(tmp_path):
    (tmp_path / "c.png").write_bytes(PNG)
    assert read_cover(tmp_path / "c.png") == PNG
    (tmp_path / "c.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="neither JPEG nor PNG"):
        read_cover(tmp_path / "c.gif")
    with (tmp_path / "large.png").open("wb") as file:
        file.write(PNG)
        file.truncate(tags.MAX_COVER + 1)
    with pytest.raises(InputError, match="larger than 16 MiB"):
        read_cover(tmp_path / "large.png")
    for wrong in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(InputError, match="cannot be read"):
            read_cover(wrong)


@pytest.mark.parametrize("extension", TAGGED)
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path, extension, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 1_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    opened = type(tmp_path).open
    full = lambda path, mode="r", **rest: Full() if mode == "wb" else opened(path, mode, **rest)
    monkeypatch.setattr(type(tmp_path), "open", full)
    with pytest.raises(OutputError, match="No space left on device"):
        written(tmp_path / f"a{extension}", tone(96_000))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_file_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.writer(str(tmp_path / "a.m4b")) as sink:
        sink.write(tone(48_000))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_pipe_gets_a_whole_file(tmp_path):
    os.mkfifo(tmp_path / "a.m4a")
    taken: list[bytes] = []
    reader = threading.Thread(target=lambda: taken.append((tmp_path / "a.m4a").read_bytes()))
    reader.start()
    written(tmp_path / "a.m4a", tone(24_000))
    reader.join()
    with av.open(io.BytesIO(taken[0])) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 24_000


@pytest.mark.parametrize("extension", containers.FORMATS)
def test_a_damaged_file_is_an_error_with_its_name(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    with pytest.raises(OutputError, match="cannot be read"):
        list(containers.read_blocks(path, 240))
    path.write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(OutputError, match=rf"'{path}' cannot be read \(.*\): delete it"):
        list(containers.read_blocks(path, 240))
