"""Options on the parts of a stream, which ``synth`` and ``bench`` share.

Responsible for their help and for the schedule that they mean. Not responsible for what a schedule
does (config/hop_schedule.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Optional

import typer

from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.errors import InputError

Hops = Annotated[
    Optional[str],
    typer.Option(help="Tokens of the first parts, such as 10,40,100; the last repeats."),
]
FirstSteps = Annotated[
    Optional[int],
    typer.Option(help="Euler steps of the flow in the first 2 s: the first sound sooner."),
]
VoiceSeconds = Annotated[
    Optional[float],
    typer.Option(help="Use the last seconds of the voice in the flow: first sound sooner."),
]


def hop_schedule(
    default: HopSchedule, hops: str | None = None, first_steps: int | None = None
) -> HopSchedule:
    """The schedule ``default`` with what the options say.

    Raises:
        InputError: impossible sizes of parts.
    """
    try:
        sizes = tuple(int(size) for size in hops.split(",")) if hops is not None else default.sizes
    except ValueError as error:
        raise InputError(f"--hops is '{hops}'; give numbers: 10,40,100") from error
    steps = default.first_steps if first_steps is None else first_steps
    return replace(default, sizes=sizes, first_steps=steps)
