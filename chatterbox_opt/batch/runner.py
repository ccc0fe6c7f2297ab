"""Runs a batch: skips finished items, synthesizes the rest, verifies, saves, updates the manifest.

Responsible for the order of operations: audio is synthesized, verified, its file noted as ours
(journal.py), written completely, and only then entered in the manifest. Not responsible for command
lines, models, or how many requests are in flight: it passes requests to a function such as
``Engine.batch`` and processes the results.

An error of one item is entered in the manifest and the run continues. An error that would affect
all items (disk full, directory gone) ends the run; the same command resumes it.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, replace

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio import loudness
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.joining.timeline import Fitting
from chatterbox_opt.batch.manifest import DONE, FAILED, Entry, Manifest
from chatterbox_opt.batch.resuming import find_done
from chatterbox_opt.batch.verify import Verifier, VerifierError
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError, OutputError, in_words
from chatterbox_opt.request import Piece, Request, Result, SynthesizeBatch, faults_of
from chatterbox_opt.sampling import chunk_seed
from chatterbox_opt.utils.wave import Wave

RETRY_CHUNK_INDEX = -1  # in place of a chunk's index, in the seed of an item that is retried
MAX_FAULTS_LISTED = 5  # faults of one item in its manifest entry


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a run: its beginning, a finished item, or its end.

    Attributes:
        kind: "begin", "item" or "end".
        total: number of items of the job.
        skipped: items finished by an earlier run.
        done, failed: items finished in this run.
        audio: seconds of audio synthesized in this run.
        elapsed: seconds since the beginning.
        share: finished share of this run's characters, from 0 to 1.
        entry: the finished item's.
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
    """The outcome of a run.

    Attributes:
        entries: by id, of all items that are done or failed, including those done by earlier runs.
        skipped: number of items done by an earlier run.
        left: number of items that were not processed.
        stopped: the error that ended the run early, if any.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    skipped: int = 0
    left: int = 0
    stopped: ChatterboxOptError | None = None

    def failed(self) -> list[Entry]:
        """Items without audio."""
        return [e for e in self.entries.values() if e.status == FAILED]

    def with_faults(self) -> list[Entry]:
        """Items whose best attempt still has faults."""
        return [e for e in self.entries.values() if e.status == DONE and e.faults]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a job is run.

    Attributes:
        verifier: transcribes each result; an item it rejects is retried ``retries`` times.
        fail_fast: end the run at the first failure.
        loudness: LUFS that the files are brought to; None leaves them as they are.
        model: what the manifest says about the model.
        timestamps: note when each word is heard.
        fitting: of speech to the times of its cues; None: they do not matter.
    """

    verifier: Verifier | None = None
    retries: int = 0
    fail_fast: bool = False
    loudness: float | None = None
    model: str = ""
    timestamps: bool = False
    fitting: Fitting | None = None


class BatchRunner:
    """One run of a job. Call ``run`` once; ``stop`` may be called from a signal handler."""

    def __init__(
        self,
        manifest: Manifest,
        items: list[Item],
        on_event: Callable[[Event], None],
        options: RunOptions | None = None,
    ) -> None:
        """Determine which items are done already, and rename their files to the items' names.

        Args:
            items: from ``prepare``.
            on_event: callback, called with every event.

        Raises:
            OutputError: a file cannot be renamed.
        """
        self._manifest, self._on_event = manifest, on_event
        self._options = options or RunOptions()
        self._stopping = False
        self._write_errors = 0  # consecutive files that could not be written
        # by id: (result, word error rate, fault) of each attempt until the item is finished
        self._attempts: dict[str, list[tuple[Result, float, str]]] = {}
        self._total = len(items)
        timestamps = self._options.timestamps
        self.summary = Summary(find_done(manifest, items, timestamps=timestamps))
        # to be synthesized in this run, by id
        self._items = {item.id: item for item in items if item.id not in self.summary.entries}
        self.summary.skipped = len(self.summary.entries)
        self._queue = deque(_request(item, timestamps=timestamps) for item in self._items.values())
        self._characters = max(sum(len(item.text) for item in self._items.values()), 1)
        self._characters_done, self._failed, self._audio = 0, 0, 0.0
        self._started = time.monotonic()

    @property
    def left(self) -> int:
        """Number of items that are neither done nor failed."""
        return self._total - len(self.summary.entries)

    def stop(self) -> None:
        """Start no new item; those in flight are finished and saved."""
        self._stopping = True

    def run(self, synthesize: SynthesizeBatch) -> Summary:
        """Synthesize what is left.

        Args:
            synthesize: from requests to results, such as ``Engine.batch``.
        """
        fitting = self._options.fitting
        fitted = synthesize if fitting is None else fitting.around(synthesize)
        self._started = time.monotonic()
        self._emit("begin")
        try:
            while self._queue and not self._stopping:
                for result in fitted(self._requests()):
                    self._finish(result)
            for id in list(self._attempts):  # items that were to be retried before the stop
                self._save_best(id)
        except ChatterboxOptError as error:  # of the whole run: an item's error is in its result
            self.summary.stopped = error
        self.summary.left = self.left
        self._emit("end")
        return self.summary

    def _requests(self) -> Iterator[Request]:
        while self._queue and not self._stopping:
            yield self._queue.popleft()

    def _finish(self, result: Result) -> None:
        """Record a failure, requeue rejected audio for a retry, or save the best attempt."""
        attempts = self._attempts.setdefault(result.id, [])
        if result.error is not None and not attempts:
            del self._attempts[result.id]
            self._add(self._failure(result.id, in_words(result.error)))
            return
        if result.error is None:
            word_error_rate, fault = self._verify(result)
            attempts.append((result, word_error_rate, fault))
            if fault and len(attempts) <= self._options.retries and not self._stopping:
                timestamps, item = self._options.timestamps, self._items[result.id]
                self._queue.appendleft(_request(item, len(attempts), timestamps=timestamps))
                return
        self._save_best(result.id)

    def _verify(self, result: Result) -> tuple[float, str]:
        """The word error rate, and the fault if it is too high ("" if not)."""
        if self._options.verifier is None:
            return 0.0, ""
        waves, item = (piece.samples for piece in result.pieces), self._items[result.id]
        texts = (item.written, item.script().text)
        try:
            rate = self._options.verifier.word_error_rate(texts, waves, item.language)
        except VerifierError as error:
            return float("inf"), str(error)
        return rate, "" if rate <= self._options.verifier.max_wer else f"word error rate {rate:.0%}"

    def _save_best(self, id: str) -> None:
        """Write the attempt with the lowest word error rate (among equals, the first)."""
        attempts = self._attempts.pop(id)
        result, _, fault = min(attempts, key=lambda attempt: attempt[1])
        pieces, item = result.pieces, self._items[id]
        fitting = self._options.fitting
        faults = _faults(pieces) + [fault] * bool(fault)
        waves = [piece.samples for piece in pieces]
        if self._options.loudness is not None:
            waves, quieter = _at_loudness(waves, self._options.loudness)
            faults += [f"{quieter:.1f} LU quieter than --loudness"] * bool(quieter)
        path = self._manifest.directory / item.file
        try:
            self._manifest.start(item.file)
            with audio_files.writer(str(path), sweep=False) as sink:
                for wave in waves:
                    sink.write(wave)
            size = path.stat().st_size
        except (OutputError, OSError) as error:
            self._on_write_error(id, error)
            return
        self._write_errors = 0
        self._add(
            replace(
                self._entry(item, DONE),
                file=item.file,
                size=size,
                duration=round(sum(len(wave) for wave in waves) / SAMPLE_RATE, 3),
                seconds=round(sum(sum(piece.seconds.values()) for piece in pieces), 3),
                seed=result.seed,
                attempts=max(piece.attempts for piece in pieces) + len(attempts) - 1,
                faults=tuple(faults),
                words=tuple(astuple(word) for word in result.words),
                rate=item.rate if fitting is None else fitting.rate(result),
            )
        )

    def _entry(self, item: Item, status: str) -> Entry:
        """The manifest entry of an item, without its outcome."""
        return Entry(
            item.id,
            item.text_hash,
            item.settings_hash,
            status,
            text=item.written,
            voice=item.voice,
            sampling=asdict(item.sampling),
            model=self._options.model,
            language=item.language,
            rate=item.rate,
        )

    def _on_write_error(self, id: str, error: OSError | OutputError) -> None:
        """Mark the item as failed; raise at the second in a row: all further work would be lost."""
        self._write_errors += 1
        if self._write_errors > 1:
            with suppress(OutputError):  # the disk may be too full even for the manifest
                self._add(self._failure(id, str(error)))
            raise error if isinstance(error, OutputError) else OutputError(str(error))
        self._add(self._failure(id, str(error)))

    def _failure(self, id: str, reason: str) -> Entry:
        error = " ".join(reason.split())
        return replace(self._entry(self._items[id], FAILED), attempts=1, error=error)

    def _add(self, entry: Entry) -> None:
        """Append to the manifest, update the counts, emit an event."""
        [entry] = self._manifest.append(entry)
        self.summary.entries[entry.id] = entry
        self._audio += entry.duration
        self._characters_done += len(self._items[entry.id].text)
        if entry.status == FAILED:
            self._failed += 1
            self._stopping |= self._options.fail_fast
        self._emit("item", entry)

    def _emit(self, kind: str, entry: Entry | None = None) -> None:
        self._on_event(
            Event(
                kind,
                self._total,
                self.summary.skipped,
                done=len(self.summary.entries) - self._failed - self.summary.skipped,
                failed=self._failed,
                audio=self._audio,
                elapsed=time.monotonic() - self._started,
                share=self._characters_done / self._characters,
                entry=entry,
            )
        )


def _at_loudness(waves: list[Wave], target: float) -> tuple[list[Wave], float]:
    """The waves of an item as one, at a loudness; and by how many LU it is missed, or 0."""
    import numpy as np

    wave, reached = loudness.at_loudness(np.concatenate(waves), target)
    missed = target - reached
    return [wave], missed if loudness.ACCEPTED < missed < float("inf") else 0.0


def _faults(pieces: tuple[Piece, ...]) -> list[str]:
    """The faults of an item, at most ``MAX_FAULTS_LISTED``."""
    faults = faults_of(pieces)
    more = len(faults) - MAX_FAULTS_LISTED
    return faults if more <= 0 else [*faults[:MAX_FAULTS_LISTED], f"{more} more"]


def _request(item: Item, attempt: int = 0, *, timestamps: bool = False) -> Request:
    """The request of an item; a retry has a seed derived from the row's.

    A row without a seed gets a random one for each attempt. It is drawn here, so the audio does not
    depend on which worker computes it or on crashes of workers.
    """
    seed = item.sampling.seed
    if seed is None:
        seed = secrets.randbits(32)
    elif attempt:
        seed = chunk_seed(seed, RETRY_CHUNK_INDEX, attempt)
    sampling = replace(item.sampling, seed=seed)
    return Request(
        *(item.id, item.text, item.voice, sampling),
        language=item.language,
        rate=item.rate,
        markup=item.markup,
        lexicon=item.lexicon,
        cast=item.cast,
        timestamps=timestamps,
    )
