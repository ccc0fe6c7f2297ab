"""Options that several commands share, and what they add up to: a machine that speaks.

Knows their names, their help and what can be said about them before torch is imported. Knows
nothing of what a command does with the engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from chatterbox_opt import audio, console, hardware, models, plan, voice_store, weight_cache
from chatterbox_opt.errors import InputError
from chatterbox_opt.profile import COMPILE, KV_CACHE, OFFLOAD, T3_DTYPES
from chatterbox_opt.voice_store import VoiceStore

if TYPE_CHECKING:
    from chatterbox_opt.engine import Engine

Store = Annotated[
    Optional[Path],
    typer.Option("--voice-cache", help="Where voices are kept; or CHATTERBOX_VOICE_CACHE."),
]
NoStore = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        "--no-voice-cache",
        help="Compute the voice and convert the weights anew; keep neither.",
    ),
]
Voice = Annotated[
    Optional[str], typer.Option(help="A recording, or a saved voice's name; else the model's own.")
]
Model = Annotated[str, typer.Option(help="A model's name, or a directory with its files.")]
Seed = Annotated[Optional[int], typer.Option(help="The same seed gives the same wav.")]
Temperature = Annotated[float, typer.Option(help="Spread of the speech; 0 is greedy.")]
CfgWeight = Annotated[float, typer.Option(help="How strongly the text steers; 0 is off.")]
Exaggeration = Annotated[float, typer.Option(help="Emotion; 0.5 is neutral.")]
MinP = Annotated[
    float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")
]
TopP = Annotated[float, typer.Option(help="Nucleus sampling; 1 keeps all.")]
TopK = Annotated[int, typer.Option(help="Keep so many of the likeliest; 0 keeps all.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1 discourages repetition.")]
MaxTokens = Annotated[int, typer.Option(help="Bound for one chunk; 25 are a second.")]
CfmSteps = Annotated[int, typer.Option(help="Steps of the flow; fewer are quicker and less exact.")]
Profile = Annotated[str, typer.Option(help="A profile's name, a .yaml file, or auto.")]
Device = Annotated[str, typer.Option(help=", ".join(hardware.DEVICES))]
Dtype = Annotated[Optional[str], typer.Option(help=", ".join(T3_DTYPES))]
Compile = Annotated[Optional[str], typer.Option(help=", ".join(COMPILE))]
Offload = Annotated[Optional[str], typer.Option(help=", ".join(OFFLOAD))]
KvCache = Annotated[
    Optional[str], typer.Option(help=f"Keys and values on a GPU: {', '.join(KV_CACHE)}.")
]
Subtype = Annotated[
    Optional[str], typer.Option(help="Sample format, such as PCM_24 or FLOAT for wav.")
]
NoWatermark = Annotated[bool, typer.Option("--no-watermark", help="Leave out the PerTh watermark.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say where each setting came from.")]
Debug = Annotated[
    bool, typer.Option("--debug", help="Tracebacks, CUDA_LAUNCH_BLOCKING, TORCH_LOGS.")
]


def store_at(directory: Path | None, *, keep: bool = True) -> VoiceStore:
    """The store in a directory, or in the default one."""
    return VoiceStore(directory or voice_store.default_directory(), keep)


def given(**options: str | None) -> dict[str, str]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Machine:
    """Which model, on what, and how."""

    model: str
    profile: str
    device: str
    overrides: Mapping[str, str]
    store: VoiceStore
    watermark: bool

    def check(self, voice: str | None) -> None:
        """Say what is wrong before torch is imported.

        Raises:
            InputError: unknown model, voice, device, profile, key or value.
        """
        models.check_name(self.model)
        if voice is not None:
            shipped = models.shipped_voices(self.model)
            if (path := self.store.find(voice, shipped)) not in shipped.values():
                audio.check_reference(path)
        if self.device not in hardware.DEVICES:
            raise InputError(f"device is '{self.device}'; known: {', '.join(hardware.DEVICES)}")
        plan.check_words(self.profile, self.overrides, os.environ)

    def announce(self, talk: console.Talk) -> None:
        """Say so if the model's files have to be fetched first."""
        if models.must_download(self.model):
            talk.say(f"fetching {models.HUB[self.model]} from the hub: 3 GB, once")

    def load(self, talk: console.Talk) -> Engine:
        """Load the engine and say what it is."""
        from chatterbox_opt.engine import Engine

        self.announce(talk)
        engine = Engine.load(
            self.model,
            self.profile,
            device=self.device,
            overrides=self.overrides,
            store=self.store,
            watermark=self.watermark,
            weights=weight_cache.default(keep=self.store.keep_computed),
        )
        talk.say(engine.plan.summary())
        for reason in engine.plan.reasons:
            talk.detail(f"  {reason}")
        return engine


def quieten(talk: console.Talk, *, debug: bool) -> None:
    """Route the library's warnings to the person; with --debug let everything through."""
    console.show_warnings(talk)
    if debug:
        os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
        os.environ.setdefault("TORCH_LOGS", "+dynamo")
    else:
        console.be_quiet()
    if talk.quiet:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the hub's and plain Chatterbox's bars
