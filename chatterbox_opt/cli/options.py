"""Options that several commands share, in groups.

Responsible for their names, defaults and help, and for the object that is built from a group. Not
responsible for what a command does with them.

A group is a dataclass with an annotated field for each option. A command has whole groups as
parameters; ``with_groups`` presents their fields to Typer as options:

    @with_groups
    def synth(text: str, sampling: SamplingOptions, engine: EngineOptions) -> None: ...
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio import recordings
from chatterbox_opt.checkpoints import flows, hub, registry
from chatterbox_opt.cli.terminal.console import Reporter, show_log
from chatterbox_opt.config import hardware
from chatterbox_opt.config.profile import COMPILE, KV_CACHE, OFFLOAD, T3_DTYPES
from chatterbox_opt.config.speaking_rate import check_rate
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import Sampling, chosen
from chatterbox_opt.text.languages import check_language
from chatterbox_opt.utils.quiet import silence_dependencies
from chatterbox_opt.voices.store import VoiceStore, default_store

if TYPE_CHECKING:
    from chatterbox_opt.config.plan import Plan

DEFAULTS = Sampling()
MAX_RETRIES = 20
_REQUIRED = inspect.Parameter.empty


def _read_pipe(context: typer.Context, voice: Optional[str]) -> Optional[str]:
    """Replace a pipe by a copy of what it sends, which the command can read more than once."""
    if voice is None or not recordings.is_pipe(Path(voice)):
        return voice
    copy: Path = context.with_resource(recordings.regular_file(Path(voice)))
    audio_files.check_reference(copy, name=voice)
    return str(copy)


VoiceCache = Annotated[
    Optional[Path],
    typer.Option("--voice-cache", help="Voice cache directory (default: $CHATTERBOX_VOICE_CACHE)."),
]
Voice = Annotated[
    Optional[str],
    typer.Option(
        help="Reference recording, or the name of a voice; default: the model's own.",
        callback=_read_pipe,
    ),
]


def _check_language(language: Optional[str]) -> Optional[str]:
    return check_language(language)


Language = Annotated[
    Optional[str],
    typer.Option(
        help="Language of the text for models that know several: de, ..., or auto.",
        callback=_check_language,
    ),
]


def _check_rate(rate: float) -> float:
    return check_rate(rate, "--rate")


Rate = Annotated[
    float,
    typer.Option(help="How fast is spoken, 0.5 to 2; the pitch is kept.", callback=_check_rate),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON to standard output in place of a table.")
]


def _of_model(parameter: str, words: str) -> Any:
    """An option whose default depends on the model; help shows that of most models."""
    return typer.Option(help=words, show_default=str(getattr(DEFAULTS, parameter)))


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The sampling parameters, by the names of ``Sampling``'s fields.

    Those whose default depends on the model are None if they are not set; what help shows is the
    default of most models.
    """

    seed: Annotated[Optional[int], typer.Option(help="The same seed gives the same file.")] = None
    temperature: Annotated[float, typer.Option(help="Sampling temperature; 0 = greedy.")] = (
        DEFAULTS.temperature
    )
    cfg_weight: Annotated[
        Optional[float], _of_model("cfg_weight", "Classifier-free guidance weight; 0 disables it.")
    ] = None
    exaggeration: Annotated[
        Optional[float], _of_model("exaggeration", "Emotion intensity; 0.5 is neutral.")
    ] = None
    min_p: Annotated[
        Optional[float],
        _of_model("min_p", "Drop tokens below this share of the most likely one's."),
    ] = None
    top_p: Annotated[
        Optional[float], _of_model("top_p", "Nucleus sampling; 1 keeps all tokens.")
    ] = None
    top_k: Annotated[
        Optional[int], _of_model("top_k", "Keep only this many most likely tokens; 0 keeps all.")
    ] = None
    repetition_penalty: Annotated[
        Optional[float], _of_model("repetition_penalty", "Above 1 discourages repetition.")
    ] = None
    max_tokens: Annotated[
        Optional[int], _of_model("max_tokens", "Maximum speech tokens per chunk (25 = 1 s).")
    ] = None
    cfm_steps: Annotated[
        Optional[int],
        _of_model("cfm_steps", "Euler steps of the flow, fewer are faster; 2 with a mean flow."),
    ] = None

    def sampling(self) -> Sampling:
        """The sampling parameters.

        Raises:
            InputError: a value is out of range.
        """
        return chosen(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The model, the device and the settings of an engine."""

    model: Annotated[str, typer.Option(help="Model name, or a directory with its files.")] = (
        registry.DEFAULT
    )
    revision: Annotated[
        Optional[str],
        typer.Option(help="Commit, branch or tag of a hub model, in place of the tested one."),
    ] = None
    profile: Annotated[str, typer.Option(help="Profile name, a .yaml file, or auto.")] = (
        hardware.AUTO
    )
    device: Annotated[str, typer.Option(help=f"One of {', '.join(hardware.DEVICES)}.")] = (
        hardware.AUTO
    )
    dtype: Annotated[
        Optional[str], typer.Option(help=f"Dtype of the weights: {', '.join(T3_DTYPES)}.")
    ] = None
    compile: Annotated[
        Optional[str], typer.Option(help=f"How the decode step is run: {', '.join(COMPILE)}.")
    ] = None
    offload: Annotated[
        Optional[str], typer.Option(help=f"Stages in host memory: {', '.join(OFFLOAD)}.")
    ] = None
    kv_cache: Annotated[
        Optional[str], typer.Option(help=f"Dtype of the KV cache on a GPU: {', '.join(KV_CACHE)}.")
    ] = None
    flow: Annotated[
        Optional[str],
        typer.Option(
            help="turbo: Turbo's two-step flow in place of chatterbox's or multilingual's, or DIR."
        ),
    ] = None
    no_watermark: Annotated[
        bool, typer.Option("--no-watermark", help="Leave out the PerTh watermark.")
    ] = False
    voice_cache: VoiceCache = None
    no_voice_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            "--no-voice-cache",
            help="Use neither cached voices nor cached converted weights.",
        ),
    ] = False

    def spec(self) -> EngineSpec:
        """The engine's specification."""
        overrides = {
            "dtype": self.dtype,
            "compile": self.compile,
            "offload": self.offload,
            "kv_cache": self.kv_cache,
            "flow_model": self.flow,
        }
        return EngineSpec(
            model=registry.at_revision(self.model, self.revision),
            profile=self.profile,
            device=self.device,
            overrides={key: value for key, value in overrides.items() if value is not None},
            store=voice_store_at(self.voice_cache, keep=not self.no_voice_cache),
            watermark=not self.no_watermark,
        )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What the command prints."""

    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")
    ] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print where each setting comes from.")
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Tracebacks, CUDA_LAUNCH_BLOCKING, TORCH_LOGS.")
    ] = False

    def reporter(self) -> Reporter:
        """The reporter that prints status lines."""
        return Reporter(quiet=self.quiet, verbose=self.verbose)

    def set_up_logging(self, reporter: Reporter) -> None:
        """Show the library's warnings and steps; with --debug what dependencies print too."""
        show_log(reporter)
        if self.debug:
            os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
            os.environ.setdefault("TORCH_LOGS", "+dynamo")
        else:
            silence_dependencies()
            os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its import resets the log level
        if self.quiet:
            os.environ.setdefault("TQDM_DISABLE", "1")  # the hub's and plain Chatterbox's bars


def check_retries(retries: int) -> None:
    """Raise InputError for a number of retries out of range."""
    if not 0 <= retries <= MAX_RETRIES:
        raise InputError(f"--retries is {retries}; use 0 to {MAX_RETRIES}")


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Present to Typer, in place of each option group of ``command``, the group's fields."""
    hints = typing.get_type_hints(command, include_extras=True)
    shown: list[inspect.Parameter] = []
    groups: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
            continue
        fields = dataclasses.fields(kind)
        assert all(field.default_factory is dataclasses.MISSING for field in fields), name
        of_fields = typing.get_type_hints(kind, include_extras=True)
        groups[name] = (typing.cast(type, kind), [field.name for field in fields])
        shown += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_REQUIRED if field.default is dataclasses.MISSING else field.default,
                annotation=of_fields[field.name],
            )
            for field in fields
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, (group, fields) in groups.items():
            values[name] = group(**{field: values.pop(field) for field in fields})
        command(**values)

    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def list_by_default(
    context: typer.Context, list_command: Callable[..., None], *, as_json: bool
) -> None:
    """Run the list command of a group of commands if no other one is requested.

    Raises:
        InputError: --json is before the other one, which has its own.
    """
    if context.invoked_subcommand is None:
        list_command(as_json=as_json)
    elif as_json:
        raise InputError(f"--json goes after {context.invoked_subcommand}")


def voice_store_at(directory: Path | None, *, keep: bool = True) -> VoiceStore:
    """The voice store in a directory, or in the default one."""
    return default_store(directory, keep_computed=keep)


def announce_download(spec: EngineSpec, reporter: Reporter, *, speaks: bool = True) -> None:
    """Print a line for each repository of which files have to be downloaded first.

    Args:
        speaks: as of ``registry.locate``.
    """
    own = registry.must_download(spec.model, speaks=speaks)
    for snapshot in filter(None, (own, flows.must_download(spec.flow_model))):
        announce_snapshot(snapshot, reporter)


def announce_snapshot(snapshot: hub.Snapshot, reporter: Reporter) -> None:
    """Print a line if the snapshot has to be downloaded first."""
    if hub.in_cache(snapshot) is None and not hub.is_offline():
        size = f": {snapshot.size / 1e9:.1f} GB, once" if snapshot.size else ""
        reporter.status(
            f"downloading {snapshot.repository} at {snapshot.revision[:12]} from the hub{size}"
        )


def report_plan(plan: Plan, reporter: Reporter, workers: int = 1) -> None:
    """Print the plan in one line, requests that it does not meet, and with -v the reasons."""
    reporter.status(plan.summary() + (f" · {workers} workers" if workers > 1 else ""))
    for warning in plan.warnings:
        reporter.warn(warning)
    for reason in plan.reasons:
        reporter.detail(f"  {reason}")
