"""The command ``batch``: a job file to a directory of audio files, or to one joined file.

Responsible for its options, signals and exit codes. Not responsible for how the work is done
(batch/runner.py) or displayed (batch_progress.py).
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch import executors, filenames, job_file
from chatterbox_opt.batch.executors import LocalExecutor, RayExecutor, WorkerSpec
from chatterbox_opt.batch.join import join
from chatterbox_opt.batch.manifest import open_manifest
from chatterbox_opt.batch.runner import BatchRunner, Summary, prepare
from chatterbox_opt.batch.verify import MAX_WER, Verifier
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.cli import options
from chatterbox_opt.cli.batch_progress import display, report
from chatterbox_opt.cli.console import Reporter
from chatterbox_opt.cli.options import EngineOptions, OutputOptions, SamplingOptions
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, OutputError, VoiceError
from chatterbox_opt.voices import store as voice_store

FORMATS = [extension.strip(".") for extension in audio_files.FORMATS]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which files are written."""

    out_dir: Annotated[Path, typer.Option("--out-dir", help="Output directory.")]
    format: Annotated[str, typer.Option(help="wav, flac, ogg or mp3.")] = "wav"
    name: Annotated[
        str, typer.Option(help="File name pattern; fields {id}, {slug} (the first words).")
    ] = filenames.DEFAULT
    joined_file: Annotated[
        Optional[str], typer.Option("--join", help="Also write everything as one file.")
    ] = None
    pause: Annotated[float, typer.Option(help="Seconds between items in the joined file.")] = 0.5
    chapter_pause: Annotated[float, typer.Option(help="Seconds where a .txt has blank lines.")] = (
        1.5
    )
    force: Annotated[bool, typer.Option("--force", help="Synthesize all items again.")] = False

    def check(self) -> None:
        """Raise InputError for an unknown format or pattern, or a pause out of range."""
        if self.format not in FORMATS:
            raise InputError(f"format is '{self.format}'; known: {', '.join(FORMATS)}")
        if not all(0 <= seconds <= 60 for seconds in (self.pause, self.chapter_pause)):
            raise InputError("--pause and --chapter-pause take 0 to 60 seconds")
        filenames.check_pattern(self.name)
        if self.joined_file is not None:
            audio_files.output_format(self.joined_file)


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What counts as a failure, and how often it is retried."""

    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = (
        False
    )
    retries: Annotated[
        int, typer.Option(help="Further attempts at output that fails the quality checks.")
    ] = 2
    verify: Annotated[
        Optional[str],
        typer.Option(help="Command that prints a wav's transcript; {} is its path, else appended."),
    ] = None
    max_wer: Annotated[
        float, typer.Option(help="Maximum word error rate for --verify (0.2 = 20 %).")
    ] = MAX_WER

    def check(self) -> None:
        """Raise InputError for a number of retries out of range."""
        if not 0 <= self.retries <= 20:
            raise InputError(f"--retries is {self.retries}; use 0 to 20")

    def verifier(self) -> Verifier | None:
        """The verifier, if a command is set.

        Raises:
            InputError: it cannot be run.
        """
        return None if self.verify is None else Verifier.of(self.verify, self.max_wer)


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where the engines run."""

    workers: Annotated[
        Optional[int], typer.Option(help="Worker processes; GPUs or cores are divided among them.")
    ] = None
    executor: Annotated[
        str, typer.Option(help="process (on this machine) or ray (on a cluster).")
    ] = executors.PROCESS
    ray_address: Annotated[
        Optional[str],
        typer.Option(help="Ray address (default: $RAY_ADDRESS, else a local cluster)."),
    ] = None


@options.with_groups
def batch(
    file: Annotated[
        str, typer.Argument(help="A .txt, .jsonl, .csv, .srt or .vtt; - reads standard input.")
    ],
    files: FileOptions,
    quality: QualityOptions,
    placement: ExecutorOptions,
    voice: options.Voice = None,
    *,
    sampling: SamplingOptions,
    engine: EngineOptions,
    printing: OutputOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON events to standard output, one per line.")
    ] = False,
) -> None:
    """Synthesize every line of a file; run it again to resume."""
    started = time.monotonic()
    reporter, spec = printing.reporter(), engine.spec()
    files.check()
    quality.check()
    executor_args = (placement.executor, placement.workers, placement.ray_address)
    executors.check_executor(*executor_args)
    verifier = quality.verifier()
    spec.check(voice)
    items = job_file.read(file, _content(file), sampling.sampling(), voice)
    names = _names(items, files)
    printing.set_up_logging(reporter)
    with (
        executors.open_executor(*executor_args) as executor,
        open_manifest(files.out_dir, reset=files.force) as manifest,
        display(reporter, as_json=as_json) as show,
    ):
        if files.joined_file is not None:
            audio_files.check_writable(files.joined_file)
        options.announce_download(spec.model, reporter)
        plan = spec.resolve(executor.probe(spec.device))
        worker = WorkerSpec(engine=spec, plan=plan, retries=quality.retries, debug=printing.debug)
        runner = BatchRunner(
            manifest,
            _prepared(spec, plan, items, names),
            show,
            verifier=verifier,
            retries=quality.retries,
            fail_fast=quality.fail_fast,
        )
        summary, caught = _run(runner, executor, worker, reporter)
    report(reporter, summary, {item.id: item.row for item in items}, time.monotonic() - started)
    if summary.stopped is not None:
        raise summary.stopped
    if caught:
        raise typer.Exit(128 + caught)
    _join(reporter, files, items, summary)
    raise typer.Exit(1 if summary.failed() else 0)


def _content(file: str) -> bytes:
    if file == job_file.STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed; pass a file")
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"'{file}' cannot be read ({reason}): check the path") from error


def _names(items: list[job_file.Item], files: FileOptions) -> list[str]:
    """The file name of each item; the joined file's name is reserved if it is in --out-dir."""
    rows = ((item.id, item.text) for item in items)
    reserved = []
    if (
        files.joined_file is not None
        and Path(files.joined_file).resolve().parent == files.out_dir.resolve()
    ):
        reserved.append(Path(files.joined_file).name)
    return filenames.names(rows, files.name, f".{files.format}", reserved)


def _prepared(
    spec: EngineSpec, plan: Plan, items: list[job_file.Item], names: list[str]
) -> list[job_file.Item]:
    """The items with hashes of everything that their audio depends on; loads no model."""
    checkpoint = registry.locate(spec.model)
    mark = "marked" if spec.watermark else "unmarked"
    parts = [registry.identity(checkpoint), *plan.precision, mark]
    voice_key = functools.partial(_voice_key, spec.store, checkpoint)
    return prepare(items, names, " ".join(parts), voice_key)


def _voice_key(store: voice_store.VoiceStore, checkpoint: Checkpoint, voice: str | None) -> str:
    if voice is None:
        return "own"
    try:
        path = store.find(voice, checkpoint.voices())
        return voice_store.content_key(path, checkpoint.voice_identity)
    except (VoiceError, OSError, ValueError):
        return "unreadable"  # its items fail with the reason when they are synthesized


def _run(
    runner: BatchRunner,
    executor: LocalExecutor | RayExecutor,
    worker: WorkerSpec,
    reporter: Reporter,
) -> tuple[Summary, int]:
    """Run the remaining items; loads a model only if there are any.

    Returns:
        the summary, and the signal that stopped the run, or 0.
    """
    if not runner.left:
        return runner.run(lambda requests: iter(())), 0
    with executor.open(worker) as synthesize:
        options.report_plan(worker.plan, reporter, executor.workers)
        with _stoppable(runner, reporter) as caught:
            summary = runner.run(synthesize)
    return summary, caught[0] if caught else 0


@contextmanager
def _stoppable(runner: BatchRunner, reporter: Reporter) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM finishes the items in progress, the second exits at once."""
    caught: list[int] = []

    def stop(number: int, _: Any) -> None:
        if caught:
            raise SystemExit(128 + number)
        caught.append(number)
        runner.stop()
        reporter.status("stopping after the items in progress; interrupt again to stop at once")

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join(
    reporter: Reporter, files: FileOptions, items: list[job_file.Item], summary: Summary
) -> None:
    """Write the joined file, if no item is missing."""
    if files.joined_file is None:
        return
    if missing := len(items) - (len(summary.entries) - len(summary.failed())):
        raise OutputError(
            f"'{files.joined_file}' is not written, {missing} items are missing: run again"
        )
    pauses = (files.pause, files.chapter_pause)
    seconds = join(items, summary.entries, files.out_dir, files.joined_file, pauses)
    reporter.status(f"joined: {seconds:.1f}s -> {files.joined_file}")
