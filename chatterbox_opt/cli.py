"""The command line: parses, calls, prints, exits. Heavy imports live inside the commands.

Knows options and exit codes. Knows nothing of how sound is made. What is wrong with the arguments
is said before torch is imported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt import __version__, audio, console, models, plan, text, voice_store
from chatterbox_opt.errors import ChatterboxOptError, InputError, OutputError, TextError
from chatterbox_opt.sampling import Sampling

app = typer.Typer(
    name="chatterbox-opt",
    help="Chatterbox text-to-speech, fast and exact.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
voices_app = typer.Typer(help="Name voices, so that --voice anna works.", no_args_is_help=True)
models_app = typer.Typer(help="List models, or make one of random values.", no_args_is_help=True)
profiles_app = typer.Typer(help="Show hardware profiles, or what was detected here.")
app.add_typer(voices_app, name="voices")
app.add_typer(models_app, name="models")
app.add_typer(profiles_app, name="profiles")

DEBUG = "--debug"
StoreOption = Annotated[
    Optional[Path],
    typer.Option("--voice-cache", envvar="CHATTERBOX_VOICE_CACHE", help="Where voices are kept."),
]
KNOBS = Sampling()


def _store(directory: Path | None, *, keep: bool = True) -> voice_store.VoiceStore:
    return voice_store.VoiceStore(directory or voice_store.default_directory(), keep)


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
    words: Annotated[Optional[str], typer.Argument(metavar="[TEXT]", help="What to say; - reads standard input.")] = None,
    file: Annotated[Optional[Path], typer.Option("--file", "-f", help="Read the text from a file.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="wav, flac, ogg or mp3; - is WAV to standard output.")] = "out.wav",
    voice: Annotated[Optional[str], typer.Option(help="A recording, or a saved voice's name; else the model's own.")] = None,
    model: Annotated[str, typer.Option(help="A model's name, or a directory with its files.")] = models.DEFAULT,
    seed: Annotated[Optional[int], typer.Option(help="The same seed gives the same wav.")] = None,
    temperature: Annotated[float, typer.Option(help="Spread of the speech; 0 is greedy.")] = KNOBS.temperature,
    cfg_weight: Annotated[float, typer.Option(help="How strongly the text steers; 0 is off.")] = KNOBS.cfg_weight,
    exaggeration: Annotated[float, typer.Option(help="Emotion; 0.5 is neutral.")] = KNOBS.exaggeration,
    min_p: Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")] = KNOBS.min_p,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1 keeps all.")] = KNOBS.top_p,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = KNOBS.repetition_penalty,
    max_tokens: Annotated[int, typer.Option(help="Bound for one chunk; 25 are a second.")] = KNOBS.max_tokens,
    profile: Annotated[str, typer.Option(help="A profile's name, a .yaml file, or auto.")] = plan.AUTO,
    device: Annotated[str, typer.Option(help=", ".join(plan.DEVICES))] = plan.AUTO,
    dtype: Annotated[Optional[str], typer.Option(help=", ".join(plan.DTYPES))] = None,
    compile: Annotated[Optional[str], typer.Option(help=", ".join(plan.COMPILE))] = None,
    offload: Annotated[Optional[str], typer.Option(help=", ".join(plan.OFFLOAD))] = None,
    subtype: Annotated[Optional[str], typer.Option(help="Sample format, such as PCM_24 or FLOAT for wav.")] = None,
    no_watermark: Annotated[bool, typer.Option("--no-watermark", help="Leave out the PerTh watermark.")] = False,
    voice_cache: StoreOption = None,
    no_voice_cache: Annotated[bool, typer.Option("--no-voice-cache", help="Compute the voice anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one result object to standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say where each setting came from.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Tracebacks, CUDA_LAUNCH_BLOCKING, TORCH_LOGS.")] = False,
) -> None:
    """Speak a text and write it to a file."""
    started = time.perf_counter()
    talk = console.Talk(quiet=quiet, verbose=verbose)
    spoken = text.clean(_read_text(words, file))
    sampling = Sampling(
        seed, temperature, cfg_weight, exaggeration, min_p, top_p, repetition_penalty, max_tokens
    )
    overrides = _given(dtype=dtype, compile=compile, offload=offload)
    store = _store(voice_cache, keep=not no_voice_cache)
    _check_output(output, subtype, as_json=as_json)
    if voice is not None:
        audio.check_reference(store.find(voice))
    models.check_name(model)
    if device not in plan.DEVICES:
        raise InputError(f"device is '{device}'; known: {', '.join(plan.DEVICES)}")
    plan.check_words(profile, overrides, os.environ)
    _quieten(talk, debug=debug)

    from chatterbox_opt.engine import Engine, seeded

    sampling = seeded(sampling)
    with Engine.load(
        model, profile, device=device, overrides=overrides, store=store, watermark=not no_watermark
    ) as engine:
        talk.say(engine.plan.summary())
        for reason in engine.plan.reasons:
            talk.detail(f"  {reason}")
        speaker = engine.voice(voice)
        loaded = time.perf_counter()
        pieces = []
        lengths = [len(chunk.text) for chunk in text.split(spoken)]
        with audio.writer(output, subtype) as sink, talk.bars(lengths) as show:
            for piece in engine.pieces(spoken, speaker, sampling, show):
                sink.write(piece.samples)
                pieces.append(dataclasses.replace(piece, samples=piece.samples[:0]))
            samples = sink.tell()
        spent = time.perf_counter() - loaded
    result = _result(pieces, samples / audio.SAMPLE_RATE, spent, sampling, output)
    result |= {"load_seconds": round(loaded - started, 3), "plan": engine.plan.summary()}
    _report(talk, result, as_json=as_json)


def _read_text(words: str | None, file: Path | None) -> str:
    if (words is None) == (file is None):
        raise InputError("give the text as an argument, as --file FILE, or as - for standard input")
    try:
        if file is not None:
            return file.read_text(encoding="utf-8-sig")
        return sys.stdin.read() if words == "-" else words or ""
    except UnicodeDecodeError as error:
        raise TextError(f"the text is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"'{file}' cannot be read ({error.strerror}): check the path") from error


def _check_output(output: str, subtype: str | None, *, as_json: bool) -> None:
    audio.output_format(output, subtype)
    audio.check_writable(output)
    if output == audio.STDOUT and as_json:
        raise InputError("sound and --json cannot both go to standard output; give -o a file")
    if output == audio.STDOUT and sys.stdout.isatty():
        raise InputError("a wav would garble the terminal; pipe it (… -o - | aplay) or give -o a file")


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _result(
    pieces: list[Any], duration: float, spent: float, sampling: Sampling, output: str
) -> dict[str, Any]:
    from chatterbox_opt.engine import total_seconds

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
        f"real-time factor {result['realtime_x']:.2f}x (seed {result['seed']}) -> {result['output']}"
    )
    stages = ", ".join(f"{name} {value:.2f}s" for name, value in result["stage_seconds"].items())
    talk.detail(f"  load {result['load_seconds']:.2f}s, {stages}, {result['tokens']} tokens")
    if as_json:
        print(json.dumps(result))


def _quieten(talk: console.Talk, *, debug: bool) -> None:
    """Route the library's warnings to the person; with --debug let everything through."""
    console.show_warnings(talk)
    if debug:
        os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
        os.environ.setdefault("TORCH_LOGS", "+dynamo")
    else:
        warnings.simplefilter("ignore")  # deprecations inside upstream's dependencies


@voices_app.command("list")
def voices_list(voice_cache: StoreOption = None) -> None:
    """List saved voices."""
    store = _store(voice_cache)
    console.table(("voice", "recording"), ((name, str(p)) for name, p in store.names().items()))
    print(f"{store.computed()} computed in {store.directory}", file=sys.stderr)


@voices_app.command("add")
def voices_add(name: str, file: Path, voice_cache: StoreOption = None) -> None:
    """Save a recording under a name (a copy; an older one of that name is replaced)."""
    audio.read_reference(file)
    print(f"{name} -> {_store(voice_cache).add(name, file)}", file=sys.stderr)


@voices_app.command("remove")
def voices_remove(name: str, voice_cache: StoreOption = None) -> None:
    """Forget a saved voice."""
    _store(voice_cache).remove(name)


@voices_app.command("clear")
def voices_clear(
    voice_cache: StoreOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget all saved and computed voices."""
    store = _store(voice_cache)
    if not yes and not typer.confirm(f"Forget all voices in {store.directory}?", err=True):
        raise typer.Exit(1)
    print(f"{store.clear()} files removed from {store.directory}", file=sys.stderr)


@models_app.command("list")
def models_list() -> None:
    """List known models and where they are."""
    rows = []
    for name, origin in models.available().items():
        here = models.in_cache(models.HUB[name]) if name in models.HUB else models.built_in(name)
        rows.append((name, origin, str(here) if here else "not downloaded yet"))
    console.table(("model", "from", "here"), rows)


@models_app.command("make")
def models_make(
    directory: Path,
    size: Annotated[str, typer.Option(help="tiny (11 MB, for tests) or full (3 GB, true shapes).")] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same values.")] = 0,
) -> None:
    """Write a checkpoint of random values in upstream's file format: noise, at true speed."""
    if size not in ("tiny", "full"):
        raise InputError(f"size is '{size}'; known: tiny, full")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"'{directory}' is a file; give a directory")
    warnings.simplefilter("ignore")
    from chatterbox_opt.random_weights import make

    make(directory, size, seed)
    print(f"made {size} weights of random values in {directory}: they speak noise", file=sys.stderr)


@profiles_app.callback(invoke_without_command=True)
def profiles_root(context: typer.Context) -> None:
    """Show hardware profiles, or what was detected here."""
    if context.invoked_subcommand is None:
        profiles_list()


@profiles_app.command("list")
def profiles_list() -> None:
    """List the shipped profiles."""
    found = [plan.load_profile(name) for name in plan.profile_names()]
    console.table(
        ("profile", "t3", "flow", "compute", "compile", "offload", "for"),
        ((p.name, p.t3, p.flow, p.compute or "same", p.compile, p.offload, p.description) for p in found),
    )


@profiles_app.command("show")
def profiles_show(name: str) -> None:
    """Show one profile, shipped or your own (.yaml)."""
    found = dataclasses.asdict(plan.load_profile(name))
    console.table(("key", "value"), ((key, str(value)) for key, value in found.items()))


@profiles_app.command("detect")
def profiles_detect(
    device: Annotated[str, typer.Option(help=", ".join(plan.DEVICES))] = plan.AUTO,
) -> None:
    """Look at this machine and say which profile auto takes, and why."""
    how = plan.resolve(plan.AUTO, plan.probe(device))
    rows = [(f.name, str(getattr(how, f.name))) for f in dataclasses.fields(how) if f.name != "reasons"]
    console.table(("key", "value"), [*rows, *(("reason", reason) for reason in how.reasons)])


@app.command()
def doctor(voice_cache: StoreOption = None) -> None:
    """Say what was found here, and what to mend."""
    from chatterbox_opt.doctor import examine

    findings = examine(_store(voice_cache))
    console.table(
        ("what", "state", "found", "remedy"),
        ((f.what, "ok" if f.good else "MEND", f.found, f.remedy) for f in findings),
    )
    raise typer.Exit(0 if all(f.good for f in findings) else 1)


# the base of usage errors; newer Typer carries its own click, so it is found by name
_CLICK_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    sys.excepthook = _unexpected
    try:
        code = app(standalone_mode=False)
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
        code = _fail(str(OutputError(f"{error.strerror}: '{error.filename}'")), 1, error)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted; nothing was written", 130, None)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int, error: Exception | None) -> int:
    if error is not None and DEBUG in sys.argv:
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


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
