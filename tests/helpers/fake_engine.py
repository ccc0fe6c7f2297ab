"""A fake engine in this process, and a batch run with it; no torch, so it loads at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from chatterbox_opt import Request, Result, Sampling
from chatterbox_opt.batch import job_file, manifest
from chatterbox_opt.batch.resuming import prepare
from chatterbox_opt.batch.runner import BatchRunner, RunOptions, Summary
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import TextError
from chatterbox_opt.request import Piece


class FakeEngine:
    """Returns 10 ms of audio a letter; a text with "bad" in it fails. Stores its requests."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, requests: Iterable[Request]) -> Iterator[Result]:
        for request in requests:
            self.asked.append(request)
            seed = request.sampling.seed or 0
            if "bad" in request.text:
                yield Result(request.id, seed, error=TextError("it is\nbad: mend it"))
                continue
            wave = np.full(len(request.text) * SAMPLE_RATE // 100, 0.1, dtype=np.float32)
            yield Result(request.id, seed, (Piece(wave, request.text, 1, {"t3": 0.5}),))

    @property
    def ids(self) -> list[str]:
        return [request.id for request in self.asked]


def tasks_of(lines: Iterable[str], voices: str = "v", made_by: str = "m") -> list[job_file.Item]:
    items = job_file.read("a.txt", "\n".join(lines).encode(), Sampling(seed=1)).items
    return prepare(items, [f"{item.id}.wav" for item in items], made_by, lambda voice: voices)


def run_batch(directory: Path, todo, speak=None, *, reset=False, events=None, **options) -> Summary:
    tell = (lambda event: None) if events is None else events.append
    with manifest.open_manifest(directory, reset=reset) as noted:
        return BatchRunner(noted, todo, tell, RunOptions(**options)).run(speak or FakeEngine())


def manifest_lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "manifest.jsonl").read_text().splitlines()]
