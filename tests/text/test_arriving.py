from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO

import pytest

from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.text.arriving import ArrivingText
from chatterbox_opt.text.incremental import chunks_of


@contextmanager
def pipe() -> Iterator[tuple[FileIO, FileIO]]:
    reading, writing = os.pipe()
    with FileIO(reading, "r") as source:
        with FileIO(writing, "w") as target:
            yield source, target
        # a read that begins after the end would be of the next test's pipe, whose number is the same
        for thread in threading.enumerate():
            if thread.name == "read text":
                thread.join(5)


def test_a_piece_is_there_before_the_line_or_the_stream_ends():
    with pipe() as (source, target), ArrivingText(source, flush_after=None) as text:
        pieces = iter(text)
        target.write(b"\xef\xbb\xbfHel")
        assert next(pieces) == "Hel"
        target.write("ö".encode()[:1])
        target.write("ö".encode()[1:] + b"!")
        assert next(pieces) == "ö!"
        target.close()
        assert list(pieces) == []


def test_a_pause_is_reported_once_and_only_after_text():
    with pipe() as (source, target), ArrivingText(source, flush_after=0.02) as text:
        pieces = iter(text)
        target.write(b"one ")
        assert [next(pieces), next(pieces)] == ["one ", None]
        threading.Timer(0.1, target.write, [b"two"]).start()
        assert [next(pieces), next(pieces)] == ["two", None]


def test_what_arrived_meanwhile_is_one_piece():
    with pipe() as (source, target), ArrivingText(source, flush_after=None) as text:
        for _ in range(3):
            target.write(b"word ")
        target.close()
        while not text._ended:
            pass
        assert list(text) == ["word word word "]


def test_a_file_is_read_to_its_end(tmp_path):
    file = tmp_path / "text"
    words = " ".join(map(str, range(400_000)))  # longer than the buffer
    file.write_text(words)
    with FileIO(str(file)) as source, ArrivingText(source) as text:
        assert "".join(piece or "" for piece in text) == words


def test_a_terminal_is_read_line_by_line():
    leader, follower = os.openpty()
    with FileIO(leader, "r+") as user, FileIO(follower, "r") as source:
        with ArrivingText(source, flush_after=None) as text:
            pieces = iter(text)
            user.write(b"Hello.\n")
            assert next(pieces) == "Hello.\n"
            user.write(b"\x04")  # Ctrl-D
            assert list(pieces) == []


def test_a_non_blocking_pipe_is_waited_for():
    with pipe() as (source, target):
        os.set_blocking(source.fileno(), False)
        with ArrivingText(source, flush_after=None) as text:
            threading.Timer(0.03, target.write, [b"late"]).start()
            assert next(iter(text)) == "late"
            target.close()


@pytest.mark.parametrize(
    ("parts", "where"), [([b"ok \xff"], 3), ([b"\xef\xbb\xbfok", b" \xc3"], 6)]
)
def test_words_before_what_is_not_utf8_are_kept(parts, where):
    with pipe() as (source, target), ArrivingText(source) as text:
        for part in parts:
            target.write(part)
        target.close()
        pieces = iter(text)
        got = ""
        with pytest.raises(TextError, match=rf"not UTF-8 \(byte {where}\)"):
            for piece in pieces:
                got += piece or ""
        assert got == "ok "


def test_a_stream_that_cannot_be_read_is_an_error(tmp_path):
    with pipe() as (_, target), ArrivingText(target) as text:
        with pytest.raises(InputError, match="cannot be read"):
            list(text)


def test_close_ends_the_iteration_while_the_writer_is_silent():
    with pipe() as (source, target):
        text = ArrivingText(source)
        threading.Timer(0.05, text.close).start()
        assert list(text) == []
        readers = [t for t in threading.enumerate() if t.name == "read text"]
        assert all(reader.daemon for reader in readers)
        target.close()  # lets the last read return


def test_a_writer_that_pauses_in_a_sentence_flushes_it():
    with pipe() as (source, target), ArrivingText(source, flush_after=0.02) as text:
        chunks = chunks_of(text)
        target.write(b"We went to the mar")
        assert next(chunks).source == "We went to the"
        target.write(b"ket. It")
        target.close()
        assert [chunk.source for chunk in chunks] == ["market.", "It"]
