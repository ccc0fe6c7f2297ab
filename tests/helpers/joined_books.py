"""Books that are joined to one file: what their items sound like, and one of many chapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from helpers.books import epub

from chatterbox_opt import Request, Result, Sampling
from chatterbox_opt.audio import files
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.joining.join import Joined, Pauses, join
from chatterbox_opt.batch.joining.mastering import Master
from chatterbox_opt.batch.manifest import Entry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.request import Piece


def speak(requests: Iterable[Request]) -> Iterator[Result]:
    """Speech-like sound: bursts of dull noise with peaks, of another level in each item."""
    random = np.random.default_rng(0)
    for number, request in enumerate(requests):
        white = random.standard_normal(SAMPLE_RATE * 2) * 0.03 * (1 + number % 3)
        wave = np.convolve(white, np.hanning(24), "same") / 4
        wave *= np.abs(np.sin(np.arange(len(wave)) / 2_000))
        wave[9_000::20_000] *= 20
        yield Result(request.id, 0, (Piece(wave.astype("f4"), request.text, 1, {"t3": 0.1}),))


def joined_from_one_file(directory: Path, chapters: int) -> Joined:
    """A mastered book of so many chapters, each item of which is the same 0.4 s."""
    content = epub([f"<h1>Chapter {i}</h1><p>x</p>" for i in range(chapters)])
    job = job_file.read("a.epub", content, Sampling(seed=1))
    [result] = speak([Request("1", "x")])
    with files.writer(str(directory / "1.wav")) as sink:
        sink.write(result.pieces[0].samples[:9_600])
    done = Entry("", "", "", "done", "1.wav", duration=0.4)
    entries = {item.id: done for item in job.items}
    target = str(directory / "book.m4b")
    return join(job.items, entries, directory, target, Pauses(0, 0), job.tags, Master.AUDIOBOOK)
