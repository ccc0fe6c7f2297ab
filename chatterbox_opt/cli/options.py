"""Options that several commands share, and what they add up to: a machine that speaks.

Knows their names, their help and what can be said about them before torch is imported. Knows
nothing of what a command does with the engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from chatterbox_opt.cli import console
from chatterbox_opt.config import hardware
from chatterbox_opt.config.profile import COMPILE, KV_CACHE, OFFLOAD, T3_DTYPES

if TYPE_CHECKING:
    pass

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


def quieten(talk: console.Reporter, *, debug: bool) -> None:
    """Route the library's warnings to the person; with --debug let everything through."""
    console.show_warnings(talk)
    if debug:
        os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")
        os.environ.setdefault("TORCH_LOGS", "+dynamo")
    else:
        console.be_quiet()
    if talk.quiet:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the hub's and plain Chatterbox's bars
