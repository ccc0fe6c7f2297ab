"""The command line: parses, calls, prints, exits. Heavy imports live inside the commands.

Knows options and exit codes. Knows nothing of how sound is made. What is wrong with the arguments
is said before torch is imported.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt import (
    __version__,
    audio,
    batch_command,
    commands,
    console,
    hardware,
    models,
    options,
    text,
)
from chatterbox_opt.errors import ChatterboxOptError, InputError, TextError
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.shapes import SAMPLE_RATE

app = typer.Typer(
    name="chatterbox-opt",
    help="Chatterbox text-to-speech, fast and exact.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(commands.voices, name="voices")
app.add_typer(commands.models_app, name="models")
app.add_typer(commands.profiles, name="profiles")
app.command()(commands.doctor)
app.command()(commands.bench)
app.command()(batch_command.batch)

DEBUG = "--debug"
INTERRUPTED = 130
COLLECT_AFTER = 200_000  # new objects, Python's own figure is 700
KNOBS = Sampling()


def _version(*, wanted: bool) -> None:
    if wanted:
        print(f"chatterbox-opt {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=lambda v: _version(wanted=v), is_eager=True)
    ] = False,
) -> None:
    """Chatterbox text-to-speech, fast and exact."""


@app.command()
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
    model: options.Model = models.DEFAULT,
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
    talk = console.Talk(quiet=quiet, verbose=verbose)
    spoken = text.clean(_read_text(words, file))
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
    machine = options.Machine(
        model,
        profile,
        device,
        options.given(dtype=dtype, compile=compile, offload=offload, kv_cache=kv_cache),
        options.store_at(voice_cache, keep=not no_voice_cache),
        not no_watermark,
    )
    _check_output(output, subtype, as_json=as_json)
    machine.check(voice)
    options.quieten(talk, debug=debug)

    import numpy as np

    from chatterbox_opt.engine import seeded

    sampling = seeded(sampling)
    with machine.load(talk) as engine:
        speaker = engine.voice(voice)
        loaded = time.perf_counter()
        pieces, samples = [], 0
        with audio.writer(output, subtype) as sink, talk.bars() as show:
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
    audio.output_format(output, subtype)
    audio.check_writable(output)
    if output == audio.STDOUT and as_json:
        raise InputError("sound and --json cannot both go to standard output; give -o a file")
    if output == audio.STDOUT and sys.stdout.isatty():
        raise InputError(
            "a wav would garble the terminal; pipe it (… -o - | aplay) or give -o a file"
        )


def _result(
    pieces: list[Any], duration: float, spent: float, sampling: Sampling, output: str
) -> dict[str, Any]:
    from chatterbox_opt.speech import total_seconds

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


def _report(talk: console.Talk, result: dict[str, Any], *, as_json: bool) -> None:
    talk.say(
        f"Generated: {result['synthesis_seconds']:.2f}s for {result['audio_seconds']:.2f}s audio, "
        f"real-time factor {result['realtime_x']:.2f}x "
        f"(seed {result['seed']}) -> {result['output']}"
    )
    stages = ", ".join(f"{name} {value:.2f}s" for name, value in result["stage_seconds"].items())
    talk.detail(f"  load {result['load_seconds']:.2f}s, {stages}, {result['tokens']} tokens")
    if as_json:
        print(json.dumps(result))


# the base of usage errors; newer Typer carries its own click, so it is found by name
_CLICK_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    # torch's 150,000 objects stay until the end: to look through them again and again while
    # they come, and once more when the process ends, takes half a second
    gc.set_threshold(COLLECT_AFTER)
    atexit.register(gc.freeze)
    sys.excepthook = _unexpected
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # through the command, not the Typer object: that would put its own hook in place of ours
        code = typer.main.get_command(app)(standalone_mode=False)
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this code
            raise KeyboardInterrupt
    except ChatterboxOptError as error:
        code = _fail(str(error), error.exit_code, error)
    except _CLICK_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        message = error.format_message()  # type: ignore[attr-defined]
        code = _fail(f"{message} See chatterbox-opt --help.", 2, error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody listens any more
        code = 1
    except OSError as error:
        where = f": '{error.filename}'" if error.filename else ""
        code = _fail(f"{error.strerror or error}{where}", 1, error)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", INTERRUPTED, None)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, error: Exception | None) -> int:
    if error is not None and DEBUG in sys.argv:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _terminate(*_: object) -> None:
    """Leave as after Ctrl-C, so that no half-written file stays behind."""
    sys.exit(128 + signal.SIGTERM)


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What nobody foresaw: one line too, and where to find the rest."""
    if DEBUG in sys.argv:
        traceback.print_exception(kind, error, trace)
    reason = " ".join(str(error).split())
    print(f"error: unexpected {kind.__name__}: {reason}; run again with {DEBUG}", file=sys.stderr)


if __name__ == "__main__":
    main()
