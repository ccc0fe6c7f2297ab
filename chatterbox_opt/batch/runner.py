"""The runner of a batch: what is left to do, done one after the other, nothing lost.

Knows the order of things: a sound is made, judged, written whole, and only then noted in the
manifest. Knows nothing of command lines, of models, or of how many utterances are in work at
once: it is given a function from requests to results (``Engine.batch``), and draws on it.

What fails for one item is noted and the others go on. What would fail for all of them, a disk
that is full or a directory that is gone, ends the run; the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch import manifest
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.manifest import Entry, Manifest
from chatterbox_opt.batch.verify import Verifier, VerifierError
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError, OutputError, in_words
from chatterbox_opt.request import Piece, Request, Result, Speak
from chatterbox_opt.sampling import chunk_seed

log = logging.getLogger(__name__)
RETRY_CHUNK_INDEX = (
    -1
)  # in place of a chunk's number, for the seed of an utterance that is spoken again
MAX_FAULTS_LISTED = 5  # faults of one item that are noted


@dataclass(frozen=True, slots=True)
class Task:
    """An item with its place and with what makes its result this one and no other."""

    item: Item
    file: str
    text: str
    settings: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show: the run begins, an item is finished, the run ends.

    Attributes:
        kind: "begin", "item" or "end".
        total: items of the job; ``skipped`` of them were done before, ``done`` and ``failed`` now.
        audio: seconds of sound made now.
        elapsed: seconds since the beginning.
        share: of the characters to be said now, from 0 to 1.
        entry: of the finished item.
    """

    kind: str
    total: int
    skipped: int
    done: int
    failed: int
    audio: float
    elapsed: float
    share: float
    entry: Entry | None = None


@dataclass(slots=True)
class Summary:
    """How a run ended.

    Attributes:
        entries: by id, of all items that are done or failed, those done before included.
        skipped: how many were done before.
        left: how many were not reached.
        stopped: what ended the run early, if that was an error.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    skipped: int = 0
    left: int = 0
    stopped: ChatterboxOptError | None = None

    def failed(self) -> list[Entry]:
        """Items without a result."""
        return [e for e in self.entries.values() if e.status == manifest.FAILED]

    def marked(self) -> list[Entry]:
        """Items whose best attempt still has faults."""
        return [e for e in self.entries.values() if e.status == manifest.DONE and e.faults]


def tasks(
    items: Iterable[Item],
    files: Iterable[str],
    made_by: str,
    voice_key: Callable[[str | None], str],
) -> list[Task]:
    """Hash what each item asks for.

    Args:
        made_by: model, precision, whatever else gives another sound or another file.
        voice_key: of a voice's content, so that a recording that changed is seen.
    """
    keys: dict[str | None, str] = {}
    found = []
    for item, file in zip(items, files, strict=True):
        if item.voice not in keys:
            keys[item.voice] = voice_key(item.voice)
        settings = {"by": made_by, "voice": keys[item.voice], **asdict(item.sampling)}
        asked = json.dumps(settings, sort_keys=True)
        found.append(Task(item, file, _hash(item.text), _hash(asked)))
    return found


def _hash(text: str) -> str:
    content = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class _Take:
    """One attempt at an utterance, and what --verify says to it."""

    result: Result
    rate: float = 0.0
    fault: str = ""


class BatchRunner:
    """One run over a job. ``run`` it once; ``stop`` may be called from a signal handler."""

    def __init__(
        self,
        noted: Manifest,
        todo: list[Task],
        tell: Callable[[Event], None],
        *,
        verifier: Verifier | None = None,
        retries: int = 0,
        fail_fast: bool = False,
    ) -> None:
        """Look at what is done already.

        Args:
            tell: is given every event.
            verifier: hears each utterance; ``retries`` times it may be spoken again.
            fail_fast: end the run at the first failure.
        """
        self._noted, self._tell = noted, tell
        self._verifier, self._retries, self._fail_fast = verifier, retries, fail_fast
        self._stopping = False
        self._full = 0  # files in a row that could not be written
        self._heard: dict[str, list[_Take]] = {}
        self.summary = Summary()
        self._total = len(todo)
        self._tasks: dict[str, Task] = {}
        for task in todo:
            if entry := noted.done(task.item.id, task.text, task.settings, task.file):
                self.summary.entries[entry.id] = entry
            else:
                self._tasks[task.item.id] = task
        self.summary.skipped = len(self.summary.entries)
        self._queue = deque(_request(task) for task in self._tasks.values())
        self._characters = max(sum(len(task.item.text) for task in self._tasks.values()), 1)
        self._said, self._failed, self._audio = 0, 0, 0.0
        self._started = time.monotonic()

    @property
    def left(self) -> int:
        """How many items are not yet done or failed."""
        return self._total - len(self.summary.entries)

    def stop(self) -> None:
        """Take no new item; what is in work is finished and noted."""
        self._stopping = True

    def run(self, speak: Speak) -> Summary:
        """Do what is left."""
        self._started = time.monotonic()
        self._event("begin")
        try:
            while self._queue and not self._stopping:
                for result in speak(self._requests()):
                    self._finish(result)
            for id in list(self._heard):  # heard, and to be spoken again when the stop came
                self._save_best(id)
        except ChatterboxOptError as error:  # of all items: what is one's own comes as a value
            self.summary.stopped = error
        self.summary.left = self.left
        self._event("end")
        return self.summary

    def _requests(self) -> Iterator[Request]:
        while self._queue and not self._stopping:
            yield self._queue.popleft()

    def _finish(self, result: Result) -> None:
        """Note a failure; save what is good; have the rest spoken again."""
        attempts = self._heard.setdefault(result.id, [])
        if result.error is not None and not attempts:
            del self._heard[result.id]
            self._note(self._failure(result.id, in_words(result.error)))
            return
        if result.error is None:
            attempts.append(self._listen(result))
            if attempts[-1].fault and len(attempts) <= self._retries and not self._stopping:
                self._queue.appendleft(_request(self._tasks[result.id], len(attempts)))
                return
        self._save_best(result.id)

    def _listen(self, result: Result) -> _Take:
        if self._verifier is None:
            return _Take(result)
        waves = (piece.samples for piece in result.pieces)
        try:
            text = self._tasks[result.id].item.text
            rate = self._verifier.word_error_rate(text, waves)
        except VerifierError as error:
            return _Take(result, float("inf"), str(error))
        if rate <= self._verifier.max_wer:
            return _Take(result, rate)
        return _Take(result, rate, f"word error rate {rate:.0%}")

    def _save_best(self, id: str) -> None:
        attempts = self._heard.pop(id)
        best = min(attempts, key=lambda heard: heard.rate)
        pieces = best.result.pieces
        task = self._tasks[id]
        path = self._noted.directory / task.file
        try:
            with audio_files.writer(str(path)) as sink:
                for piece in pieces:
                    sink.write(piece.samples)
            size = path.stat().st_size
        except (OutputError, OSError) as error:
            self._unwritten(id, error)
            return
        self._full = 0
        found = _faults(pieces)
        self._note(
            Entry(
                id,
                task.text,
                task.settings,
                manifest.DONE,
                task.file,
                size,
                round(sum(len(piece.samples) for piece in pieces) / SAMPLE_RATE, 3),
                round(sum(sum(piece.seconds.values()) for piece in pieces), 3),
                best.result.seed,
                max(piece.attempts for piece in pieces) + len(attempts) - 1,
                tuple(found + [best.fault] * bool(best.fault)),
            )
        )

    def _unwritten(self, id: str, error: OSError | OutputError) -> None:
        """Note it; twice in a row is no matter of this item, and the work would be for nothing."""
        self._full += 1
        stop = error if isinstance(error, OutputError) else OutputError(str(error))
        if self._full > 1:
            with suppress(OutputError):  # the disk may be too full for this, too
                self._note(self._failure(id, str(error)))
            raise stop
        self._note(self._failure(id, str(error)))

    def _failure(self, id: str, reason: str) -> Entry:
        task = self._tasks[id]
        error = " ".join(reason.split())
        return Entry(id, task.text, task.settings, manifest.FAILED, attempts=1, error=error)

    def _note(self, entry: Entry) -> None:
        entry = self._noted.append(entry)
        self.summary.entries[entry.id] = entry
        self._audio += entry.duration
        self._said += len(self._tasks[entry.id].item.text)
        if entry.status == manifest.FAILED:
            self._failed += 1
            self._stopping |= self._fail_fast
        self._event("item", entry)

    def _event(self, kind: str, entry: Entry | None = None) -> None:
        done = len(self.summary.entries) - self._failed - self.summary.skipped
        self._tell(
            Event(
                kind,
                self._total,
                self.summary.skipped,
                done,
                self._failed,
                self._audio,
                time.monotonic() - self._started,
                self._said / self._characters,
                entry,
            )
        )


def _faults(pieces: tuple[Piece, ...]) -> list[str]:
    """What is wrong with an utterance, and in which chunk."""
    found = [
        fault if len(pieces) == 1 else f"chunk {number}: {fault}"
        for number, piece in enumerate(pieces, 1)
        for fault in piece.faults
    ]
    more = len(found) - MAX_FAULTS_LISTED
    return found if more <= 0 else [*found[:MAX_FAULTS_LISTED], f"{more} more"]


def _request(task: Task, attempt: int = 0) -> Request:
    """What the engine is asked; a further attempt has a seed derived from the row's.

    A row without a seed gets one here, each time anew, so that who speaks it does not matter, nor
    how often a worker dies of it.
    """
    item, seed = task.item, task.item.sampling.seed
    if seed is None:
        seed = secrets.randbits(32)
    elif attempt:
        seed = chunk_seed(seed, RETRY_CHUNK_INDEX, attempt)
    return Request(item.id, item.text, item.voice, replace(item.sampling, seed=seed))
