"""The command ``convert``: recordings to the same speech with another voice.

Responsible for its options, for which file is written of which recording, and for the results that
it prints. Not responsible for the conversion (engine/conversion/) or for formats (audio/files.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from chatterbox_opt.audio import containers, speech
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio import recordings as audio_recordings
from chatterbox_opt.batch import filenames
from chatterbox_opt.cli import inputs, options
from chatterbox_opt.cli.inputs import STDIN
from chatterbox_opt.cli.options import EngineOptions, OutputOptions
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.cli.terminal.console import Reporter, as_utf8
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.conversion.request import Conversion
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.utils.paths import nearest_existing
from chatterbox_opt.utils.printable import message_line

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine
    from chatterbox_opt.request import Piece

DEFAULT_OUTPUT = "out.wav"
FORMATS = [extension.strip(".") for extension in containers.FORMATS]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which files are written."""

    output: Annotated[
        Optional[str],
        typer.Option("--output", "-o", help="Of one recording; - is WAV to standard output."),
    ] = None
    out_dir: Annotated[
        Optional[Path],
        typer.Option("--out-dir", help="Directory for a file of each recording, by its name."),
    ] = None
    format: Annotated[
        Optional[str], typer.Option(help=f"Of the files in --out-dir: {', '.join(FORMATS)}.")
    ] = None
    subtype: Annotated[
        Optional[str], typer.Option(help="Sample format, such as PCM_24 or FLOAT for wav.")
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are in --out-dir already.")
    ] = False

    def targets(self, recordings: list[str], *, as_json: bool) -> list[str]:
        """The file of each recording; nothing is written yet.

        Raises:
            InputError: options that exclude each other, or a file that cannot be written.
        """
        if self.out_dir is None:
            return [self._output(recordings, as_json=as_json)]
        return self._in_directory(self.out_dir, recordings)

    def _output(self, recordings: list[str], *, as_json: bool) -> str:
        if len(recordings) > 1:
            raise InputError(f"{len(recordings)} recordings need --out-dir DIR")
        if self.format is not None or self.overwrite:
            raise InputError("--format and --overwrite are for --out-dir; -o has an extension")
        output = DEFAULT_OUTPUT if self.output is None else self.output
        streams.check_output(output, self.subtype, as_json=as_json)
        return output

    def _in_directory(self, directory: Path, recordings: list[str]) -> list[str]:
        if self.output is not None:
            raise InputError("-o is for one recording without --out-dir; give one of them")
        extension = f".{'wav' if self.format is None else self.format}"
        if extension not in containers.FORMATS:
            raise InputError(f"format is '{self.format}'; known: {', '.join(FORMATS)}")
        stems = [("stdin" if name == STDIN else Path(name).stem, "") for name in recordings]
        targets = [str(directory / name) for name in filenames.names(stems, "{id}", extension)]
        audio_files.output_format(targets[0], self.subtype)
        place = nearest_existing(directory)
        if not place.is_dir():
            raise InputError(f"'{place}' is no directory; give another --out-dir")
        for target in targets:
            audio_files.check_writable(str(place / Path(target).name))
        there = [target for target in targets if os.path.lexists(target)]
        if there and not self.overwrite:
            raise InputError(
                f"'{there[0]}' is there already; give another --out-dir, or allow it to be "
                "replaced with --overwrite"
            )
        return targets


@options.with_groups
def convert(
    recordings: Annotated[
        list[str],
        typer.Argument(metavar="RECORDING", help="Audio files; - reads standard input."),
    ],
    files: FileOptions,
    voice: options.Voice = None,
    seed: Annotated[Optional[int], typer.Option(help="The same seed gives the same file.")] = None,
    cfm_steps: Annotated[
        Optional[int],
        typer.Option(help="Euler steps of the flow (default: the model's own, 10 or 2)."),
    ] = None,
    *,
    engine: EngineOptions,
    printing: OutputOptions,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object per recording, one per line.")
    ] = False,
) -> None:
    """Give recordings another voice; what they say and how stays."""
    started = time.perf_counter()
    targets = files.targets(recordings, as_json=as_json)
    reporter, spec = printing.reporter(), dataclasses.replace(engine.spec(), speaks=False)
    inputs.check_kept([*recordings, *inputs.recordings([voice], spec.store)], targets)
    for recording in recordings:
        if recording != STDIN:
            speech.check_speech(Path(recording))
    Conversion("", "", None, seed, cfm_steps)  # their ranges
    spec.check(voice)
    printing.set_up_logging(reporter)
    options.announce_download(spec, reporter, speaks=False)
    with _readable(recordings) as sources, spec.load_converter() as loaded:
        options.report_plan(loaded.plan, reporter)
        chosen = loaded.voice(voice)
        ready = time.perf_counter()
        jobs = [
            _Job(Conversion(str(number), source, chosen, seed, cfm_steps), name, target)
            for number, (source, name, target) in enumerate(
                zip(sources, recordings, targets, strict=True)
            )
        ]
        if files.out_dir is None:
            result = _one(loaded, jobs[0], files.subtype)
            result |= {
                "load_seconds": round(ready - started, 3),
                "plan": loaded.plan.summary(),
            }
            _report(reporter, result, as_json=as_json)
            return
        files.out_dir.mkdir(parents=True, exist_ok=True)
        failed = _many(loaded, jobs, files.subtype, reporter, as_json=as_json)
    raise typer.Exit(1 if failed else 0)


@dataclass(frozen=True, slots=True)
class _Job:
    """A conversion, the name of its recording, and where it is written."""

    conversion: Conversion
    name: str
    target: str


def _one(engine: Engine, job: _Job, subtype: str | None) -> dict[str, Any]:
    """Convert and write as it is made; return the figures that are printed."""
    import numpy as np

    conversion, pieces, samples = job.conversion.with_seed(), [], 0
    begin = time.perf_counter()
    with audio_files.writer(job.target, subtype) as sink:
        for piece in engine.converted_pieces(conversion):
            sink.write(piece.samples)
            samples += len(piece.samples)
            # the samples are on disk: a long recording must not fill memory
            pieces.append(dataclasses.replace(piece, samples=np.empty(0, np.float32)))
        spent = time.perf_counter() - begin
    result = _result(job, pieces, samples, conversion.seed or 0)
    speed = result["audio_seconds"] / spent
    return result | {"conversion_seconds": round(spent, 3), "realtime_x": round(speed, 3)}


def _many(
    engine: Engine, jobs: list[_Job], subtype: str | None, reporter: Reporter, *, as_json: bool
) -> int:
    """Convert and write each; return how many failed."""
    by_id, failed = {job.conversion.id: job for job in jobs}, 0
    for result in engine.convert_many(job.conversion for job in jobs):
        job, pieces, error = by_id[result.id], list(result.pieces), result.error
        if error is None:
            error = _write(job.target, subtype, pieces)
        if error is not None:
            failed += 1
            message = message_line(str(error))
            reporter.warn(f"'{as_utf8(job.name)}' is not converted: {message}")
            if as_json:
                row = {"input": as_utf8(job.name), "seed": result.seed, "error": message}
                print(json.dumps(row), flush=True)
            continue
        samples = sum(len(piece.samples) for piece in pieces)
        _report(reporter, _result(job, pieces, samples, result.seed), as_json=as_json)
    return failed


def _write(target: str, subtype: str | None, pieces: list[Piece]) -> OutputError | None:
    """Write a file; return why it could not be."""
    try:
        with audio_files.writer(target, subtype) as sink:
            for piece in pieces:
                sink.write(piece.samples)
    except OutputError as error:
        return error
    return None


def _result(job: _Job, pieces: list[Piece], samples: int, seed: int) -> dict[str, Any]:
    from chatterbox_opt.request import total_seconds

    return {
        "input": as_utf8(job.name),
        "output": as_utf8(job.target),
        "audio_seconds": round(samples / SAMPLE_RATE, 3),
        "seed": seed,
        "windows": len(pieces),
        "tokens": sum(piece.tokens for piece in pieces),
        "stage_seconds": {k: round(v, 3) for k, v in total_seconds(pieces).items()},
    }


def _report(reporter: Reporter, result: dict[str, Any], *, as_json: bool) -> None:
    speed = ""
    if "realtime_x" in result:
        speed = f" in {result['conversion_seconds']:.2f}s, {result['realtime_x']:.2f}x real time"
    reporter.status(
        f"Converted: {result['audio_seconds']:.2f}s audio{speed} (seed {result['seed']}) -> "
        f"{result['output']}"
    )
    stages = ", ".join(f"{name} {value:.2f}s" for name, value in result["stage_seconds"].items())
    reporter.detail(f"  {stages}, {result['tokens']} tokens, windows: {result['windows']}")
    if as_json:
        print(json.dumps(result), flush=True)


@contextmanager
def _readable(recordings: list[str]) -> Iterator[list[str]]:
    """The recordings as paths: standard input is copied to a file for the time of the block."""
    if STDIN not in recordings:
        yield recordings
        return
    given = streams.standard_input("pass a file")
    with audio_recordings.copied(given, "standard input", audio_recordings.SPEECH) as copy:
        yield [str(copy) if name == STDIN else name for name in recordings]
