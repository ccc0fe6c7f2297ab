"""The command ``synth``: one text to one sound file."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli import console, options
from chatterbox_opt.config import hardware
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine import spec as engine_spec
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text import chunking

KNOBS = Sampling()


def synth(
    words: Annotated[
        Optional[str], typer.Argument(metavar="[TEXT]", help="What to say; - reads standard input.")
    ] = None,
    file: Annotated[
        Optional[Path], typer.Option("--file", "-f", help="Read the text from a file.")
    ] = None,
    output: Annotated[
        str,
        typer.Option("--output", "-o", help="wav, flac, ogg or mp3; - is WAV to standard output."),
    ] = "out.wav",
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
    subtype: options.Subtype = None,
    no_watermark: options.NoWatermark = False,
    voice_cache: options.Store = None,
    no_voice_cache: options.NoStore = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one result object to standard output.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Speak a text and write it to a file."""
    started = time.perf_counter()
    talk = console.Reporter(quiet=quiet, verbose=verbose)
    spoken = chunking.clean(_read_text(words, file))
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
    _check_output(output, subtype, as_json=as_json)
    machine.check(voice)
    options.quieten(talk, debug=debug)

    import numpy as np

    from chatterbox_opt.engine.engine import seeded

    sampling = seeded(sampling)
    with machine.load(talk) as engine:
        speaker = engine.voice(voice)
        loaded = time.perf_counter()
        pieces, samples = [], 0
        with audio_files.writer(output, subtype) as sink, talk.bars() as show:
            for piece in engine.pieces(spoken, speaker, sampling, show):
                sink.write(piece.samples)
                samples += len(piece.samples)
                pieces.append(dataclasses.replace(piece, samples=np.empty(0, np.float32)))
        spent = time.perf_counter() - loaded
    result = _result(pieces, samples / SAMPLE_RATE, spent, sampling, output)
    result |= {"load_seconds": round(loaded - started, 3), "plan": engine.plan.summary()}
    _report(talk, result, as_json=as_json)


def _read_text(words: str | None, file: Path | None) -> str:
    if (words is None) == (file is None):
        raise InputError("give the text as an argument, as --file FILE, or as - for standard input")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8-sig")
        if words == "-":
            return _standard_input().decode("utf-8-sig")
        return words or ""
    except UnicodeDecodeError as error:
        raise TextError(f"the text is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"'{file}' cannot be read ({error.strerror}): check the path") from error


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("standard input is closed; give the text as an argument or --file FILE")
    return sys.stdin.buffer.read()


def _check_output(output: str, subtype: str | None, *, as_json: bool) -> None:
    audio_files.output_format(output, subtype)
    audio_files.check_writable(output)
    if output == audio_files.STDOUT and as_json:
        raise InputError("sound and --json cannot both go to standard output; give -o a file")
    if output == audio_files.STDOUT and sys.stdout.isatty():
        raise InputError(
            "a wav would garble the terminal; pipe it (… -o - | aplay) or give -o a file"
        )


def _result(
    pieces: list[Any], duration: float, spent: float, sampling: Sampling, output: str
) -> dict[str, Any]:
    from chatterbox_opt.request import total_seconds

    return {
        "output": output,
        "audio_seconds": round(duration, 3),
        "synthesis_seconds": round(spent, 3),
        "realtime_x": round(duration / spent, 3),
        "seed": sampling.seed,
        "chunks": len(pieces),
        "tokens": sum(piece.tokens for piece in pieces),
        "stage_seconds": {k: round(v, 3) for k, v in total_seconds(pieces).items()},
    }


def _report(talk: console.Reporter, result: dict[str, Any], *, as_json: bool) -> None:
    talk.say(
        f"Generated: {result['synthesis_seconds']:.2f}s for {result['audio_seconds']:.2f}s audio, "
        f"real-time factor {result['realtime_x']:.2f}x "
        f"(seed {result['seed']}) -> {result['output']}"
    )
    stages = ", ".join(f"{name} {value:.2f}s" for name, value in result["stage_seconds"].items())
    talk.detail(f"  load {result['load_seconds']:.2f}s, {stages}, {result['tokens']} tokens")
    if as_json:
        print(json.dumps(result))
