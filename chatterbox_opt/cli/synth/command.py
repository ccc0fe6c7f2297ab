"""The command ``synth``: one text to one audio file.

Responsible for its options, where the text comes from and the result that it prints. Not
responsible for synthesis (engine/engine.py) or audio formats (audio/files.py).
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from chatterbox_opt.cli import inputs, options
from chatterbox_opt.cli.inputs import STDIN
from chatterbox_opt.cli.options import EngineOptions, OutputOptions, SamplingOptions
from chatterbox_opt.cli.synth.script import ScriptOptions, voices_of
from chatterbox_opt.cli.synth.streaming import (
    STDIN_REMEDY,
    Sinks,
    StreamOptions,
    arriving_text,
    open_sinks,
)
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.cli.terminal.console import Reporter, as_utf8, show_details
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.request import Request
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.script.reader import script_of
from chatterbox_opt.text import chunking, languages
from chatterbox_opt.words import caption_files
from chatterbox_opt.words.word import Timeline

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine
    from chatterbox_opt.engine.quality import Guard
    from chatterbox_opt.request import Observer, Piece

REQUESTS = "chatterbox_opt.engine.serving.states"  # the module whose log it is
RETRIES = 2
MAX_QUOTED = 40  # characters of a chunk in a warning


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Whether the output is checked, and how often it is retried."""

    retries: Annotated[
        Optional[int],
        typer.Option(
            help="Further attempts at a chunk that fails the quality checks.",
            show_default=str(RETRIES),
        ),
    ] = None
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Skip the quality checks and their retries.")
    ] = False

    def guard(self) -> Guard | None:
        """The guard of the synthesis, or None.

        Raises:
            InputError: a number of retries out of range, or without the checks.
        """
        from chatterbox_opt.engine.quality import Guard

        retries = RETRIES if self.retries is None else self.retries
        options.check_retries(retries)
        if self.no_check and self.retries is not None:
            raise InputError("--retries is for the quality checks: drop it, or --no-check")
        return None if self.no_check else Guard(retries)


@options.with_groups
def synth(
    words: Annotated[
        Optional[str],
        typer.Argument(metavar="TEXT", help="The text to synthesize; - reads standard input."),
    ] = None,
    file: Annotated[
        Optional[Path], typer.Option("--file", "-f", help="Read the text from a file.")
    ] = None,
    output: Annotated[
        Optional[str],
        typer.Option(
            "--output", "-o", help="A .wav, .flac, .ogg, .mp3, .opus or .m4a; - is WAV to stdout."
        ),
    ] = None,
    subtype: Annotated[
        Optional[str], typer.Option(help="Sample format, such as PCM_24 or FLOAT for wav.")
    ] = None,
    timestamps: Annotated[
        Optional[str],
        typer.Option(help="Also write when each word is heard: a .srt, .vtt or .json."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
    voice: options.Voice = None,
    language: options.Language = None,
    rate: options.Rate = 1.0,
    *,
    streaming: StreamOptions,
    checks: CheckOptions,
    script: ScriptOptions,
    sampling: SamplingOptions,
    engine: EngineOptions,
    printing: OutputOptions,
) -> None:
    """Synthesize a text and write it to a file."""
    started = time.perf_counter()
    arrives = streaming.streams and words == STDIN and file is None
    streaming.check(output, subtype, arrives=arrives)
    if arrives:
        script.check_arriving()
        if timestamps is not None:
            raise InputError(f"--timestamps needs the whole text: {STDIN_REMEDY}")
    request = Request(
        *("", "" if arrives else chunking.clean(_read_text(words, file))),
        *(voice, sampling.sampling()),
        language=language,
        rate=rate,
        markup=script.markup,
        lexicon=script.words(),
        cast=script.speakers(),
        timestamps=timestamps is not None,
    )
    job = _Job(
        request,
        arrives,
        checks.guard(),
        engine.spec(),
        streaming.output(output),
        subtype,
        streaming,
        timestamps,
    )
    reporter = printing.reporter()
    if job.output is not None:
        streams.check_output(job.output, subtype, as_json=as_json)
    if timestamps is not None:
        caption_files.check_target(timestamps)
    text = None if arrives else script_of(request)
    voices = [voice, *voices_of(request.cast, [] if text is None else [text])]
    read = [words if words == STDIN else None, file, script.lexicon, script.cast]
    inputs.check_kept([*read, *inputs.recordings(voices, job.spec.store)], [job.output, timestamps])
    job.spec.check(voice, language, request.sampling, timestamps=request.timestamps)
    printing.set_up_logging(reporter)
    if text is None:
        show_details(reporter, REQUESTS)  # of the lexicon
    else:
        script.show(reporter, request, text, job.spec)
    result = _run(job, reporter, started)
    _report(reporter, result, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Job:
    """The text, how it is synthesized, and where it is written.

    Attributes:
        request: without a seed, perhaps.
        arrives: its text comes at standard input.
        output: None: it is only played.
        timestamps: file for captions; None: none.
    """

    request: Request
    arrives: bool
    guard: Guard | None
    spec: EngineSpec
    output: str | None
    subtype: str | None
    streaming: StreamOptions
    timestamps: str | None


def _run(job: _Job, reporter: Reporter, started: float) -> dict[str, Any]:
    """Load, synthesize and write; return the figures that are printed."""
    import numpy as np

    request = job.request.with_seed()
    options.announce_download(job.spec, reporter)
    with job.spec.load() as engine:
        options.report_plan(engine.plan, reporter)
        if remark := languages.remark(request.language, engine.checkpoint.config):
            reporter.warn(remark)
        voice = engine.voice(request.voice)
        if job.streaming.voice_seconds is not None:
            voice = voice.shortened(job.streaming.voice_seconds)
        loaded = time.perf_counter()
        pieces: list[Piece] = []
        timeline = Timeline()
        samples = 0
        letters = None if job.arrives else len(request.text)
        latency = job.streaming.chosen_latency(engine.hops)
        request = dataclasses.replace(request, voice=voice, latency=latency)
        with (
            open_sinks(
                *(job.streaming, latency, job.output, job.subtype, letters, request.rate)
            ) as sink,
            reporter.progress() as show,
            _pieces(engine, job, request, show) as source,
        ):
            for piece in source:
                sink.write(piece.samples)
                if piece.faults:
                    number = 1 + sum(made.ends_chunk for made in pieces)
                    reporter.warn(_doubt(number, piece, request.sampling))
                samples += len(piece.samples)
                timeline.add(piece)
                # the samples are on disk: a long text must not fill memory
                pieces.append(dataclasses.replace(piece, samples=np.empty(0, np.float32)))
            spent = time.perf_counter() - loaded
            sink.finish()
    if job.timestamps is not None:
        caption_files.write_captions(job.timestamps, timeline.words, request.language)
    result = _result(pieces, samples / SAMPLE_RATE, spent, request.sampling, job.output)
    if job.timestamps is not None:
        result["timestamps"] = as_utf8(job.timestamps)
    if job.streaming.streams:
        result |= _stream_result(sink)
    return result | {"load_seconds": round(loaded - started, 3), "plan": engine.plan.summary()}


@contextmanager
def _pieces(
    engine: Engine,
    job: _Job,
    request: Request,
    show: Observer | None,
) -> Iterator[Iterator[Piece]]:
    """The pieces of the text, whole or arriving. When they stream, another thread makes them, so
    that this one is free for Ctrl-C."""
    if job.arrives:
        how = (request.latency, request.language, request.rate, request.lexicon)
        with arriving_text(job.streaming.seconds_to_flush) as text:
            yield engine.pieces(text, request.voice, request.sampling, show, job.guard, *how)
    elif job.streaming.streams:
        handle = engine.submit(request, job.guard, show)
        try:
            yield handle
        finally:
            handle.cancel()
    else:
        yield engine.pieces(request, observe=show, guard=job.guard)


def _stream_result(sinks: Sinks) -> dict[str, Any]:
    """What a stream adds to the result."""
    first, heard = sinks.first_audio, sinks.playback
    result: dict[str, Any] = {"first_audio_seconds": None if first is None else round(first, 3)}
    if heard is not None:
        result |= {"underruns": heard.underruns, "gap_seconds": round(heard.gap, 3)}
    return result


def _read_text(words: str | None, file: Path | None) -> str:
    if (words is None) == (file is None):
        raise InputError("pass the text as an argument, as --file FILE, or as - for standard input")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8-sig")
        if words == STDIN:
            return streams.standard_input(STDIN_REMEDY).read().decode("utf-8-sig")
        return as_utf8(words or "")
    except UnicodeDecodeError as error:
        raise TextError(f"the text is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        name = as_utf8(str(file))
        raise InputError(f"'{name}' cannot be read ({error.strerror}): check the path") from error


def _doubt(number: int, piece: Piece, sampling: Sampling) -> str:
    """The warning about a chunk whose best attempt has faults."""
    quoted = textwrap.shorten(piece.text, MAX_QUOTED, placeholder="…")
    which = "its one attempt" if piece.attempts == 1 else f"the best of {piece.attempts} attempts"
    remedies = ["more --max-tokens"] if sampling.max_tokens < options.DEFAULTS.max_tokens else []
    # greedy decoding draws the same tokens with every seed
    greedy = sampling.temperature == 0
    remedies += ["a --temperature above 0"] if greedy else ["another --seed", "more --retries"]
    return (
        f"chunk {number} ('{quoted}'): {which} may be bad ({'; '.join(piece.faults)}): "
        f"listen to it, and try {' or '.join(remedies)}"
    )


def _result(
    pieces: list[Piece], duration: float, spent: float, sampling: Sampling, output: str | None
) -> dict[str, Any]:
    from chatterbox_opt.request import faults_of, total_seconds

    return {
        "output": None if output is None else as_utf8(output),
        "audio_seconds": round(duration, 3),
        "synthesis_seconds": round(spent, 3),
        "realtime_x": round(duration / spent, 3),
        "seed": sampling.seed,
        "chunks": sum(piece.ends_chunk and bool(piece.text) for piece in pieces),
        "tokens": sum(piece.tokens for piece in pieces),
        "attempts": max(piece.attempts for piece in pieces),
        "faults": faults_of(pieces),
        "stage_seconds": {k: round(v, 3) for k, v in total_seconds(pieces).items()},
    }


def _heard(result: dict[str, Any]) -> str:
    line = f"First audio after {result['first_audio_seconds']:.2f}s"
    if result.get("underruns"):
        line += f"; {result['underruns']} gaps of {result['gap_seconds']:.2f}s in the playback"
    return line


def _report(reporter: Reporter, result: dict[str, Any], *, as_json: bool) -> None:
    reporter.status(
        f"Generated: {result['synthesis_seconds']:.2f}s for {result['audio_seconds']:.2f}s audio, "
        f"{result['realtime_x']:.2f}x real time "
        f"(seed {result['seed']})" + (f" -> {result['output']}" if result["output"] else "")
    )
    if result.get("first_audio_seconds") is not None:
        reporter.status(_heard(result))
    stages = ", ".join(f"{name} {value:.2f}s" for name, value in result["stage_seconds"].items())
    reporter.detail(f"  load {result['load_seconds']:.2f}s, {stages}, {result['tokens']} tokens")
    if as_json:
        print(json.dumps(result))
