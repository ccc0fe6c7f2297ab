"""Turbo's S3Gen in place of a model's own: two steps of a mean flow behind the 0.5B's T3.

Responsible for which models can have it, for finding both checkpoints and for what is taken from
which. Not responsible for finding one model (registry.py); imports no torch.

T3 of Chatterbox and of the multilingual models writes the same 25 codes a second that Turbo's flow
reads, and upstream has one S3Gen class for both. What is heard then is that of upstream's class of
the T3 model with Turbo's S3Gen as its ``s3gen``:

    of the T3 model   text, T3, voice encoder, the voice of conds.pt, what is taken of a recording
                      (loudness as it is, 6 s for T3), no silence after T3's tokens
    of Turbo's file   flow, vocoder, and the S3 tokenizer and x-vector encoder of new voices

Turbo's class brings a recording to -27 LUFS and appends three silent tokens. Both are done in its
``generate`` and its ``prepare_conditionals``, around S3Gen and not in it: the first would change
what the 0.5B's T3 is conditioned on too, the second make up for a T3 that ends without a pause.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chatterbox_opt.checkpoints import families, hub, registry
from chatterbox_opt.checkpoints.families import TURBO_KIND
from chatterbox_opt.checkpoints.hub import Snapshot
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config.config_file import read_config
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.config.profile import FLOW_MODELS, OWN_FLOW, TURBO_FLOW
from chatterbox_opt.errors import InputError, WeightsError

FILE = TURBO_KIND.s3gen
SAME = "'%s' has a two-step flow already: --flow %s changes nothing"


def check(model: str, flow: str) -> None:
    """Check that a model can have a flow, before the network is used.

    Args:
        flow: a ``Profile.flow_model``.

    Raises:
        InputError: unknown model or flow, or they do not go together.
        WeightsError: the model's config.json is damaged.
    """
    if flow == OWN_FLOW:
        return
    registry.check_name(model)
    config = _config(model)
    if config.needs_text_normalization:  # only of models like pico, whose codes are pairs of phones
        raise InputError(
            f"'{model}' has speech tokens of its own, which Turbo's flow cannot read: leave out "
            "--flow"
        )
    if flow == TURBO_FLOW:
        return
    if config.flow.mean_flow:
        raise InputError(
            f"'{model}' has a two-step flow of its own: --flow DIR is for chatterbox and "
            "multilingual models"
        )
    if not Path(flow).is_dir():
        raise InputError(f"unknown flow '{flow}'; {FLOW_MODELS}")
    if not (Path(flow) / FILE).is_file():
        raise InputError(
            f"'{flow}' lacks {FILE}: --flow takes turbo, or a directory with that file"
        )


def can_have(model: str) -> bool:
    """Whether a known model or a directory can have another flow than its own."""
    config = _config(model)
    return not (config.needs_text_normalization or config.flow.mean_flow)


def locate(
    model: str = registry.DEFAULT, flow: str = OWN_FLOW, *, speaks: bool = True
) -> Checkpoint:
    """Find the files of a model and of the flow that it is to have.

    Args:
        speaks: as of ``registry.locate``.

    Returns:
        The model's own checkpoint if it has a two-step flow already, else one with ``sources``.

    Raises:
        InputError, WeightsError: as ``check`` and ``registry.locate``.
    """
    check(model, flow)
    if flow == OWN_FLOW or _config(model).flow.mean_flow:
        return registry.locate(model, speaks=speaks)
    source, own = _source(flow), registry.locate(model, speaks=speaks)
    config = dataclasses.replace(
        own.config,
        flow=source.config.flow,
        vocoder=source.config.vocoder,
        voice=dataclasses.replace(source.config.voice, lstm=own.config.voice.lstm),
        random_weights=own.config.random_weights or source.config.random_weights,
    )
    sources = {"t3": own, "flow": source}
    return registry.checked(dataclasses.replace(own, config=config, sources=sources))


def must_download(flow: str) -> Snapshot | None:
    """What a flow needs the network for, if anything."""
    snapshot = _snapshot()
    return snapshot if flow == TURBO_FLOW and hub.in_cache(snapshot) is None else None


def _config(model: str) -> ModelConfig:
    """The config of a model, without its files if it is on the hub."""
    if registry.on_hub(model):
        return registry.kind_named(model).config
    directory = registry.built_in(model) if model in registry.BUILT_IN else Path(model)
    return read_config(directory, registry.kind_of(directory).config)


def _snapshot() -> Snapshot:
    """The one file of Turbo's repository that is needed."""
    turbo = families.HUB[TURBO_FLOW]
    pins = {name: pin for name, pin in turbo.pins.items() if name == FILE}
    remedies = (
        f"chatterbox-opt models get {TURBO_FLOW}, with a network",
        f"--flow DIR with a copy of {FILE}",
        "leave out --flow: the model's own flow",
    )
    return dataclasses.replace(turbo, files=(FILE,), pins=pins, remedies=remedies)


def _source(flow: str) -> Checkpoint:
    """The checkpoint that an S3Gen is taken from; nothing else of it has to be there."""
    directory = hub.fetch(_snapshot()) if flow == TURBO_FLOW else Path(flow)
    config = read_config(directory, TURBO_KIND.config)
    if not config.flow.mean_flow:
        raise WeightsError(f"'{directory}' has no two-step flow: its config.json says so")
    return Checkpoint(flow, directory, config, "", TURBO_KIND)
