"""``batch book.epub --join book.m4b``: options that do not fit, resuming, streams."""

from __future__ import annotations

import json
import os

import av
import pytest
from helpers.books import PNG, epub

BODIES = ["<h1>Chapter 1</h1><p>One.</p>", "<h1>Chapter 2</h1><p>Two.</p>"]
OPTIONS = ("--max-tokens", "9", "--seed", "1", "--no-watermark", "--retries", "0")


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.epub").write_bytes(epub(BODIES))
    (tmp_path / "cover.png").write_bytes(PNG)
    return tmp_path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--master", "audiobook"), "--master is for a joined file: add --join FILE"),
        (("--title", "T"), "--title, --author and --cover are for a joined file that has room"),
        (("--author", "A", "--join", "b.wav"), "add --join FILE.m4b"),
        (("--cover", "cover.png", "--join", "b.flac"), "add --join FILE.m4b"),
        (("--cover", "book.epub", "--join", "b.m4b"), "neither JPEG nor PNG"),
        (("--master", "radio", "--join", "b.m4b"), "audiobook"),
        (("--master", "audiobook", "--join", "b.m4b", "--timed"), "--timed has none: drop one"),
        (("--format", "m4x"), "known: wav, flac, ogg, mp3, opus, m4a, m4b"),
        (("--join", "b.aac"), "use .wav, .flac, .ogg, .mp3, .opus, .m4a, .m4b"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(book, run_forked, args, message):
    result = run_forked("batch", "book.epub", "--out-dir", "out", *args, cwd=book)
    assert result.returncode == 2
    assert message in " ".join(result.stderr.decode().split())
    assert not (book / "out").exists()


def test_more_chapters_than_the_format_has_are_an_error_before_any_work(tmp_path, run_forked):
    (tmp_path / "a.md").write_text("".join(f"# {i}\n\nx\n\n" for i in range(256)))
    args = ("batch", "a.md", "--out-dir", "out", "--join", "b.mp3")
    result = run_forked(*args, cwd=tmp_path)
    assert result.returncode == 2
    assert "256 chapters are more than the 255" in result.stderr.decode()
    assert not (tmp_path / "out").exists()


def test_a_book_is_resumed_by_its_content_and_joined_again(book, tiny, run_forked):
    args = ("batch", "book.epub", "--model", str(tiny), "--out-dir", "out", *OPTIONS)
    first = run_forked(*args, "--join", "a.m4b", "--master", "audiobook", cwd=book)
    assert first.returncode == 0, first.stderr.decode()
    assert ", 2 chapters -> a.m4b" in first.stderr.decode()
    assert "mastered: " in first.stderr.decode()
    (book / "book.epub").write_bytes(epub(["<h1>Preface</h1>", *BODIES]))
    again = run_forked(
        *args, "--format", "wav", "--join", "b.mp3", "--title", "Mine", "--cover", "cover.png",
        "--json", cwd=book,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr.decode()
    events = [json.loads(line) for line in again.stdout.decode().splitlines()]
    assert events[0]["skipped"] == 4 and events[-1]["done"] == 1, "only the preface is new"
    with av.open(str(book / "b.mp3")) as container:
        assert container.metadata["title"] == "Mine"
        assert container.metadata["artist"] == "Ann Author"
        names = [chapter["metadata"]["title"] for chapter in container.chapters()]
        assert names == ["Preface: Chapter 1", "Chapter 2"]


def test_a_book_is_joined_to_a_pipe(book, tiny, run_forked):
    os.mkfifo(book / "pipe.m4b")
    args = ("--out-dir", "out", "--join", "pipe.m4b", "--master", "audiobook", *OPTIONS)
    reader = os.open(book / "pipe.m4b", os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run_forked("batch", "book.epub", "--model", str(tiny), *args, cwd=book)
        assert result.returncode == 0, result.stderr.decode()
        assert b"ftypM4B" in os.read(reader, 1_000)
    finally:
        os.close(reader)


def test_a_dry_run_shows_chapters(book, run_forked):
    result = run_forked("batch", "book.epub", "--dry-run", "--json", cwd=book)
    lines = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [line.get("chapter") for line in lines] == ["Chapter 1", "", "Chapter 2", "", None]
    assert lines[-1]["notes"] == ["'A Book' by Ann Author, with a cover"]
    shown = run_forked("batch", "book.epub", "--dry-run", cwd=book)
    assert "4 items · 2 headings" in shown.stderr.decode()
