"""The command ``batch``: a job file to a directory of audio files, or to one joined file.

Responsible for its options, signals and exit codes. Not responsible for how the work is done
(batch/runner.py) or displayed (progress.py).
"""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from chatterbox_opt.batch import executors, job_file
from chatterbox_opt.batch.executors import LocalExecutor, RayExecutor, WorkerSpec
from chatterbox_opt.batch.joining import timeline
from chatterbox_opt.batch.joining.join import check_chapters
from chatterbox_opt.batch.joining.timeline import Fitting
from chatterbox_opt.batch.manifest import Manifest
from chatterbox_opt.batch.readers.rows import Dropped, words_by_reason
from chatterbox_opt.batch.resuming import open_directory, prepare, stale_files
from chatterbox_opt.batch.runner import BatchRunner, RunOptions, Summary
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.cli import inputs, options, signals
from chatterbox_opt.cli.batch import checks, outputs
from chatterbox_opt.cli.batch.options import (
    ExecutorOptions,
    FileOptions,
    JoinOptions,
    QualityOptions,
    ReadingOptions,
)
from chatterbox_opt.cli.batch.preview import preview
from chatterbox_opt.cli.batch.preview import summary as summary_of
from chatterbox_opt.cli.batch.progress import display, report
from chatterbox_opt.cli.options import EngineOptions, OutputOptions, SamplingOptions
from chatterbox_opt.cli.synth.script import ScriptOptions, check_members, describe, hint, voices_of
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.cli.terminal.console import Reporter
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.config.profile import OWN_FLOW
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, TextError, VoiceError
from chatterbox_opt.script.cast import Cast
from chatterbox_opt.text import languages
from chatterbox_opt.voices import store as voice_store

log = logging.getLogger(__name__)
STALE_SHOWN = 5  # files of earlier runs that are named


@options.with_groups
def batch(
    file: Annotated[
        str,
        typer.Argument(help=f"A {', '.join(job_file.FORMATS)}; - reads standard input."),
    ],
    files: FileOptions,
    reading: ReadingOptions,
    joining: JoinOptions,
    quality: QualityOptions,
    placement: ExecutorOptions,
    script: ScriptOptions,
    voice: options.Voice = None,
    language: options.Language = None,
    rate: options.Rate = 1.0,
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
    for group in (files, joining, quality):
        group.check()
    reading.check(file)
    directory = None if reading.dry_run else files.directory
    executor_args = (placement.executor, placement.workers, placement.ray_address)
    executors.check_executor(*executor_args)
    read_options = reading.read_options(script)
    content = _content(file)
    job = job_file.read(file, content, sampling.sampling(), voice, read_options, language, rate)
    config = registry.known_config(spec.model)
    checks.check_captions(files, joining, config)
    job = checks.fitted(job, config, timestamps=files.timestamps is not None)
    hint(reporter, ((f"row {item.row}", item.text) for item in job.items if not item.markup))
    if joining.timed:
        timeline.check_times(job)
    if directory is None:
        dropped = [*job.dropped, *_dropped_by_model(spec.model, job)]
        preview(job, dropped, as_json=as_json, timed=joining.timed)
        return
    verifier = quality.verifier()
    spec.check(voice)
    cast = read_options.cast
    check_members(spec, cast.members if cast else (), sampling.sampling(), language)
    checks.check_lengths(job, spec, config, set(registry.shipped_voices(spec.model)))
    items, tags = job.items, joining.tags(job.tags)
    if joining.joined_file is not None:
        check_chapters(items, joining.joined_file)
        outputs.check_joined(joining.joined_file, directory, as_json=as_json)
    names = outputs.names_of(items, files, joining.joined_file)
    given = (file, script.lexicon, script.cast, joining.cover)
    read = [*given, *_recordings(job, voice, cast, spec)]
    inputs.check_kept(read, outputs.paths(files, joining, names))
    printing.set_up_logging(reporter)
    for note in job.notes:
        reporter.status(note)
    if job.pauses or job.dropped:
        reporter.status(summary_of(job, words_by_reason(job.dropped)))
    describe(reporter, (item.script() for item in items))
    replaced = None if files.overwrite else [*names, *outputs.other_files(files, joining, names)]
    with ExitStack() as opened:
        executor = opened.enter_context(executors.open_executor(*executor_args))
        plan = spec.resolve(executor.probe(spec.device))
        # what can be refused was refused: from here on there is an output directory
        manifest = opened.enter_context(open_directory(directory, replaced, force=files.force))
        worker = WorkerSpec(engine=spec, plan=plan, retries=quality.retries, debug=printing.debug)
        with display(reporter, as_json=as_json) as show:
            options.announce_download(spec, reporter)
            timing = joining.timing()
            stretch = None if timing is None else timing.stretch
            items = _prepared(spec, plan, items, names, files.loudness, stretch)
            run_options = RunOptions(
                verifier=verifier,
                retries=quality.retries,
                fail_fast=quality.fail_fast,
                loudness=files.loudness,
                model=_model_text(spec, plan),
                timestamps=files.timestamps is not None,
                fitting=None if stretch is None else Fitting(items, stretch),
            )
            runner = BatchRunner(manifest, items, show, run_options)
            summary, caught = _run(runner, executor, worker, reporter)
            stale = stale_files(manifest, items)
            _report_stale(stale, manifest, read, reporter, prune=files.prune and not summary.left)
        report(reporter, summary, {i.id: i.row for i in items}, time.monotonic() - started)
        if summary.stopped is not None:
            raise summary.stopped
        if caught:
            raise typer.Exit(128 + caught)
        done = outputs.done_entries(items, summary)
        outputs.write_metadata_file(reporter, manifest, files.metadata, done)
        outputs.write_captions(reporter, manifest, files.timestamps, done)
        outputs.write_joined(
            reporter, manifest, files, joining, job, tags, items, summary, as_json=as_json
        )
    raise typer.Exit(1 if summary.failed() else 0)


def _recordings(
    job: job_file.Job, voice: str | None, cast: Cast | None, spec: EngineSpec
) -> Iterator[Path]:
    """The recordings that a job reads."""
    of_texts = voices_of(cast, (item.script() for item in job.items))
    voices = [voice, *(item.voice for item in job.items), *of_texts]
    return inputs.recordings(voices, spec.store)


def _dropped_by_model(model: str, job: job_file.Job) -> Iterator[Dropped]:
    """What the built-in model cannot read; any other model gets the texts as they are."""
    is_here = model in registry.BUILT_IN or Path(model).is_dir()
    if not is_here or not registry.locate(model).config.needs_text_normalization:
        return
    from chatterbox_opt.text.english.normalizer import read_english

    for item in job.items:
        try:
            for part in read_english(item.script().text).dropped:
                yield Dropped(part.reason, part.text, item.row)
        except TextError:
            yield Dropped("texts without an English word", item.text, item.row)


def _content(file: str) -> bytes:
    if file == job_file.STDIN:
        return streams.standard_input("pass a file").read()
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"'{file}' cannot be read ({reason}): check the path") from error


def _prepared(
    spec: EngineSpec,
    plan: Plan,
    items: list[job_file.Item],
    names: list[str],
    loudness: float | None,
    stretch: float | None,
) -> list[job_file.Item]:
    """The items with hashes of everything that their audio depends on; loads no model."""
    checkpoint = spec.locate()
    remarks = {languages.remark(item.language, checkpoint.config) for item in items}
    for remark in filter(None, remarks):
        log.warning(remark)
    mark = "marked" if spec.watermark else "unmarked"
    parts = [registry.identity(checkpoint), *plan.precision, mark]
    voice_key = functools.partial(_voice_key, spec.store, checkpoint)
    return prepare(items, names, " ".join(parts), voice_key, loudness, stretch)


def _model_text(spec: EngineSpec, plan: Plan) -> str:
    """What the manifest says about the model: ``pico int8``."""
    precision = "/".join(dict.fromkeys(filter(None, plan.precision)))
    flow = "" if plan.flow_model == OWN_FLOW else f" with the flow of {plan.flow_model}"
    return f"{spec.model} {precision}{flow}" + ("" if spec.watermark else " without watermark")


def _report_stale(
    stale: list[str],
    manifest: Manifest,
    read: list[str | Path | None],
    reporter: Reporter,
    *,
    prune: bool,
) -> None:
    """List the files of earlier runs that the job does not have and does not read (such as a
    voice that was made by an earlier run), or delete them."""
    unread = inputs.not_read(read, (manifest.directory / name for name in stale))
    stale = [path.name for path in unread]
    if not stale:
        return
    shown = ", ".join(stale[:STALE_SHOWN]) + (", ..." if len(stale) > STALE_SHOWN else "")
    if not prune:
        reporter.status(f"{len(stale)} files of earlier runs have no item: {shown} (--prune)")
        return
    manifest.prune(stale)
    reporter.status(f"{len(stale)} files of earlier runs deleted: {shown}")


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
    """The first signal to end finishes the items in progress, the second exits at once."""
    caught: list[int] = []

    def stop(number: int, _: Any) -> None:
        if caught:
            raise SystemExit(128 + number)
        caught.append(number)
        runner.stop()
        reporter.status("stopping after the items in progress; interrupt again to stop at once")

    numbers = signals.heard(signal.SIGINT, *signals.ending())
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
