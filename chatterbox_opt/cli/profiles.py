"""The commands ``profiles``: shipped profiles, and the plan for this machine.

Responsible for their options and output. Not responsible for choosing a profile (config/plan.py).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from chatterbox_opt.cli import options
from chatterbox_opt.cli.terminal import console
from chatterbox_opt.config import hardware, plan
from chatterbox_opt.config.profile import load_profile, profile_names
from chatterbox_opt.engine import probe

profiles = typer.Typer(help="Show hardware profiles, or what is detected on this machine.")


@profiles.callback(invoke_without_command=True)
def profiles_root(context: typer.Context, as_json: options.AsJson = False) -> None:
    """Show hardware profiles, or what is detected on this machine."""
    options.list_by_default(context, profiles_list, as_json=as_json)


@profiles.command("list")
def profiles_list(as_json: options.AsJson = False) -> None:
    """List the shipped profiles."""
    shipped = [load_profile(name) for name in profile_names()]
    if as_json:
        console.print_json([dataclasses.asdict(profile) for profile in shipped])
        return
    console.table(
        ("profile", "t3", "flow", "compute", "compile", "offload", "for"),
        (
            (p.name, p.t3, p.flow, p.compute or "same", p.compile, p.offload, p.description)
            for p in shipped
        ),
    )


@profiles.command("show")
def profiles_show(
    name: Annotated[str, typer.Argument(help="A shipped profile, or a .yaml file.")],
    as_json: options.AsJson = False,
) -> None:
    """Show one profile, shipped or your own (.yaml)."""
    settings = dataclasses.asdict(load_profile(name))
    if as_json:
        console.print_json(settings)
        return
    console.table(("key", "value"), ((key, str(value)) for key, value in settings.items()))


@profiles.command("detect")
def profiles_detect(
    device: Annotated[str, typer.Option(help=", ".join(hardware.DEVICES))] = hardware.AUTO,
    as_json: options.AsJson = False,
) -> None:
    """Show which profile auto picks on this machine, and why."""
    reporter = console.Reporter()
    console.show_log(reporter)
    with reporter.waiting("detecting the hardware"):
        resolved = plan.resolve(hardware.AUTO, probe.probe(device))
    if as_json:
        console.print_json(dataclasses.asdict(resolved))
        return
    rows = [
        (field.name, _cell(getattr(resolved, field.name)))
        for field in dataclasses.fields(resolved)
        if field.name not in ("reasons", "warnings")
    ]
    console.table(("key", "value"), [*rows, *(("reason", why) for why in resolved.reasons)])


def _cell(value: object) -> str:
    if isinstance(value, plan.StagePlan):
        layout = "" if value.layout == plan.PLAIN else f", layout {value.layout}"
        computed = "" if value.compute == value.storage else f", {value.compute} computed"
        return f"{value.storage}{computed}{layout}, kernels {value.kernels}"
    return str(value)
