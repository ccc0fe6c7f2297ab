"""The command ``batch``: a job file to a directory of sound files, or to one book.

Knows its options, signals and exit codes. Knows nothing of how the work is done (batch/runner.py) or
shown (batch_progress.py).
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.batch import executors, filenames, job_file, manifest
from chatterbox_opt.batch.join import join
from chatterbox_opt.batch.runner import BatchRunner, Summary, prepare
from chatterbox_opt.batch.verify import MAX_WER, Verifier
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.cli import console, options
from chatterbox_opt.cli.batch_progress import display, report
from chatterbox_opt.config import hardware, plan
from chatterbox_opt.engine import spec as engine_spec
from chatterbox_opt.errors import InputError, OutputError, VoiceError
from chatterbox_opt.request import Speak
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.voices import store as voice_store

KNOBS = Sampling()
FORMATS = [extension.strip(".") for extension in audio_files.FORMATS]


def batch(
    file: Annotated[
        str, typer.Argument(help="A .txt, .jsonl, .csv, .srt or .vtt; - is lines from a pipe.")
    ],
    out_dir: Annotated[Path, typer.Option("--out-dir", help="Where the files go.")],
    format: Annotated[str, typer.Option(help="wav, flac, ogg or mp3.")] = "wav",
    name: Annotated[
        str, typer.Option(help="Of the files, from {id} and {slug}, the text's first words.")
    ] = filenames.DEFAULT,
    book: Annotated[
        Optional[str], typer.Option("--join", help="Also write all of it as one file.")
    ] = None,
    pause: Annotated[float, typer.Option(help="Seconds between items in the joined file.")] = 0.5,
    chapter_pause: Annotated[
        float, typer.Option(help="Seconds where a .txt has blank lines.")
    ] = 1.5,
    force: Annotated[bool, typer.Option("--force", help="Make all of it anew.")] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failure.")
    ] = False,
    retries: Annotated[int, typer.Option(help="Further attempts at speech that went wrong.")] = 2,
    verify: Annotated[
        Optional[str],
        typer.Option(help="A command that gets a wav's path ({}, or at its end), prints words."),
    ] = None,
    max_wer: Annotated[float, typer.Option(help="Word errors that --verify accepts.")] = MAX_WER,
    voice: options.Voice = None,
    model: options.Model = registry.DEFAULT,
    seed: options.Seed = None,
    temperature: options.Temperature = KNOBS.temperature,
    cfg_weight: options.CfgWeight = KNOBS.cfg_weight,
    exaggeration: options.Exaggeration = KNOBS.exaggeration,
    min_p: options.MinP = KNOBS.min_p,
    top_p: options.TopP = KNOBS.top_p,
    top_k: options.TopK = KNOBS.top_k,
    repetition_penalty: options.RepetitionPenalty = KNOBS.repetition_penalty,
    max_tokens: options.MaxTokens = KNOBS.max_tokens,
    cfm_steps: options.CfmSteps = KNOBS.cfm_steps,
    profile: options.Profile = hardware.AUTO,
    device: options.Device = hardware.AUTO,
    dtype: options.Dtype = None,
    compile: options.Compile = None,
    offload: options.Offload = None,
    kv_cache: options.KvCache = None,
    no_watermark: options.NoWatermark = False,
    voice_cache: options.Store = None,
    no_voice_cache: options.NoStore = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an event a line to standard output.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
    workers: Annotated[
        Optional[int], typer.Option(help="Engines at a time; each has a card, or a share of cores.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="process, or ray: on a cluster's machines.")
    ] = executors.PROCESS,
    ray_address: Annotated[
        Optional[str], typer.Option(help="Of a cluster; or RAY_ADDRESS; else one is started here.")
    ] = None,
) -> None:
    """Speak every line of a file; run again to go on where it stopped."""
    started = time.monotonic()
    talk = console.Reporter(quiet=quiet, verbose=verbose)
    sampling = Sampling(
        seed,
        temperature,
        cfg_weight,
        exaggeration,
        min_p,
        top_p,
        repetition_penalty,
        max_tokens,
        cfm_steps,
        top_k,
    )
    machine = engine_spec.Machine(
        model,
        profile,
        device,
        engine_spec.given(dtype=dtype, compile=compile, offload=offload, kv_cache=kv_cache),
        engine_spec.store_at(voice_cache, keep=not no_voice_cache),
        not no_watermark,
    )
    _check(format, name, retries, (pause, chapter_pause))
    executors.check_executor(executor, workers, ray_address)
    if book is not None:
        audio_files.output_format(book)
    verifier = Verifier.of(verify, max_wer) if verify is not None else None
    machine.check(voice)
    items = job_file.read(file, _content(file), sampling, voice)
    files = _files(items, name, format, book, out_dir)
    options.quieten(talk, debug=debug)
    with (
        executors.open_executor(executor, workers, ray_address) as place,
        manifest.open_manifest(out_dir, reset=force) as noted,
        display(talk, as_json=as_json) as show,
    ):
        if book is not None:
            audio_files.check_writable(book)
        machine.announce(talk)
        how = plan.resolve(machine.profile, place.probe(machine.device), machine.overrides)
        work = BatchRunner(
            noted,
            _tasks(machine, how, items, files),
            show,
            verifier=verifier,
            retries=retries,
            fail_fast=fail_fast,
        )
        speech = executors.WorkerSpec(machine, retries, debug)
        summary, caught = _work(work, lambda: place.speaking(speech, how, talk), talk)
    report(talk, summary, {item.id: item.row for item in items}, time.monotonic() - started)
    if summary.stopped is not None:
        raise summary.stopped
    if caught:
        raise typer.Exit(128 + caught)
    _join(talk, book, items, summary, (out_dir, pause, chapter_pause))
    raise typer.Exit(1 if summary.failed() else 0)


def _check(format: str, name: str, retries: int, pauses: tuple[float, float]) -> None:
    if format not in FORMATS:
        raise InputError(f"format is '{format}'; known: {', '.join(FORMATS)}")
    if not 0 <= retries <= 20:
        raise InputError(f"--retries is {retries}; give 0 to 20")
    if not all(0 <= seconds <= 60 for seconds in pauses):
        raise InputError("--pause and --chapter-pause take 0 to 60 seconds")
    filenames.check_pattern(name)


def _content(file: str) -> bytes:
    if file == job_file.STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file")
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"'{file}' cannot be read ({reason}): check the path") from error


def _files(
    items: list[job_file.Item], name: str, format: str, book: str | None, out_dir: Path
) -> list[str]:
    rows = ((item.id, item.text) for item in items)
    inside = book is not None and Path(book).resolve().parent == out_dir.resolve()
    return filenames.names(rows, name, f".{format}", [Path(book).name] if book and inside else [])


def _tasks(
    machine: engine_spec.Machine, how: plan.Plan, items: list[job_file.Item], files: list[str]
) -> list[job_file.Item]:
    """What is asked, hashed with all that its sound depends on: no model is loaded for it."""
    checkpoint = registry.locate(machine.model)
    precision = [how.t3, how.flow, how.compute] if how.optimized else ["plain"]
    mark = "marked" if machine.watermark else "unmarked"
    made_by = " ".join([registry.identity(checkpoint), *precision, mark])
    return prepare(items, files, made_by, functools.partial(_voice_key, machine.store, checkpoint))


def _voice_key(store: voice_store.VoiceStore, checkpoint: Checkpoint, voice: str | None) -> str:
    if voice is None:
        return "own"
    try:
        path = store.find(voice, checkpoint.voices())
        return voice_store.content_key(path, checkpoint.voice_identity)
    except (VoiceError, OSError, ValueError):
        return "unreadable"  # its items will say why when their turn comes


def _work(
    work: BatchRunner, speaking: Callable[[], AbstractContextManager[Speak]], talk: console.Reporter
) -> tuple[Summary, int]:
    """Run it, with a model only if something is left; also return the signal that ended it."""
    if not work.left:
        return work.run(lambda requests: iter(())), 0
    with speaking() as speak, _stoppable(work, talk) as caught:
        summary = work.run(speak)
    return summary, caught[0] if caught else 0


@contextmanager
def _stoppable(work: BatchRunner, talk: console.Reporter) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM lets what is in work be finished, the second does not."""
    caught: list[int] = []

    def stop(number: int, _: Any) -> None:
        if caught:
            raise SystemExit(128 + number)
        caught.append(number)
        work.stop()
        talk.say("stopping when what is in work is finished; once more to stop at once")

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join(
    talk: console.Reporter,
    book: str | None,
    items: list[job_file.Item],
    summary: Summary,
    where: tuple[Path, float, float],
) -> None:
    """Write the book, if nothing is missing in it."""
    if book is None:
        return
    if missing := len(items) - (len(summary.entries) - len(summary.failed())):
        raise OutputError(f"'{book}' is not written, {missing} items are missing: run again")
    directory, *pauses = where
    length = join(items, summary.entries, directory, book, (pauses[0], pauses[1]))
    talk.say(f"joined: {length:.1f}s -> {book}")
