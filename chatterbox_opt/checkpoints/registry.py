"""Models by name or directory: how to find and check their files.

Responsible for names, revisions, and for the kind of a directory. Not responsible for what is known
of each model (families.py), for downloads (hub.py) or for the tensors in the files (loader.py);
imports no torch.

A model is named by ``pico``, by ``chatterbox`` or another name of the family, by
``chatterbox@main`` (a hub model at another revision than the pinned one), or by a directory.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chatterbox_opt.checkpoints import digests, families, file_sizes, hub
from chatterbox_opt.checkpoints.families import CHATTERBOX, HUB_KINDS, KINDS, Kind
from chatterbox_opt.checkpoints.hub import Snapshot
from chatterbox_opt.config.config_file import read_config
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.errors import InputError, WeightsError

log = logging.getLogger(__name__)

BUILT_IN, DEFAULT, HUB = families.BUILT_IN, families.DEFAULT, families.HUB
# files of chatterbox and pico
VOICE_ENCODER, T3, S3GEN, TOKENIZER = CHATTERBOX.required
CONDITIONALS = families.CONDITIONALS
REQUIRED, FILES = CHATTERBOX.required, CHATTERBOX.files
VOICES = "voices"  # folder of named voices that come with a model; hub models have none


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete set of model files on local disk.

    Attributes:
        name: as passed to ``locate``.
        directory: of the files.
        config: of all stages.
        voice_identity: digest of the encoders that turn a recording into a Voice, and of what
            they get of it.
        kind: its file format.
        shared: directory of the files that the kind takes from another repository.
        sources: the checkpoints that "t3" and "flow" are from, if not all is of one model
            (flows.py); "flow" is the whole S3Gen.
    """

    name: str
    directory: Path
    config: ModelConfig
    voice_identity: str
    kind: Kind = CHATTERBOX
    shared: Path | None = None
    sources: Mapping[str, Checkpoint] = field(default_factory=dict, hash=False)

    def source(self, part: str) -> Checkpoint:
        """The checkpoint of one model that a part is from."""
        return self.sources.get(part, self)

    def path(self, file: str) -> Path:
        """Where a file is, or would be."""
        if self.shared and self.kind.shared and file in self.kind.shared.files:
            return self.shared / file
        return self.directory / file

    @property
    def t3(self) -> Path:
        """The file of T3's weights."""
        return self.path(self.kind.t3)

    @property
    def s3gen(self) -> Path:
        """The file of the weights of flow, vocoder, and two of a voice's encoders."""
        source = self.source("flow")
        return source.path(source.kind.s3gen)

    @property
    def voice_encoder(self) -> Path:
        """The file of the third encoder's weights."""
        return self.path(self.kind.voice_encoder)

    @property
    def conditionals(self) -> Path:
        """The file of the model's own voice; may be absent."""
        return self.path(CONDITIONALS)

    def voices(self) -> dict[str, Path]:
        """Named voices that come with the model, as files (see ``voices.library.load_voice``)."""
        return _voices(self.directory)


def available() -> dict[str, str]:
    """Known model names and the source of each, for messages and tables."""
    known = {name: f"hub: {snapshot.repository}" for name, snapshot in HUB.items()}
    return known | dict.fromkeys(BUILT_IN, "built in")


def built_in(name: str) -> Path:
    """Directory of a model that is part of the package."""
    return Path(__file__).parents[1] / name


def shipped_voices(model: str) -> dict[str, Path]:
    """Named voices that come with a model; uses no network, so hub models have none."""
    if on_hub(model):
        return {}
    return _voices(_on_disk(model))


def _on_disk(model: str) -> Path:
    return built_in(model) if model in BUILT_IN else Path(model)


def _voices(directory: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((directory / VOICES).glob("*.safetensors"))}


def on_hub(model: str) -> Snapshot | None:
    """The snapshot that a model's name stands for; None for built-in models and directories.

    Raises:
        InputError: no revision can have that name.
    """
    name, at, revision = model.partition("@")
    if name not in HUB or (at and Path(model).is_dir()):
        return None
    return HUB[name].at(revision) if at else HUB[name]


def at_revision(model: str, revision: str | None) -> str:
    """The name of a hub model at another revision than the pinned one.

    Raises:
        InputError: the model is not of the hub.
    """
    if revision is None:
        return model
    if model not in HUB:
        raise InputError(f"--revision is for models of the hub ({', '.join(HUB)}), not '{model}'")
    return f"{model}@{revision}"


def check_name(model: str) -> None:
    """Reject an impossible model name early, before disk or network are used.

    Raises:
        InputError: neither a known name nor a directory.
    """
    if model in available() or on_hub(model) or Path(model).is_dir():
        return
    raise InputError(
        f"unknown model '{model}'; known: {', '.join(available())}, or a directory with the files "
        "of one"
    )


def kind_of(directory: Path) -> Kind:
    """The kind of a directory: the first whose files are complete, else the one it has most of."""

    def present(kind: Kind) -> list[bool]:
        return [(directory / name).is_file() for name in (kind.t3, *kind.required)]

    found = {kind.name: present(kind) for kind in KINDS}
    complete = (kind for kind in KINDS if all(found[kind.name]))
    return next(complete, None) or max(
        KINDS, key=lambda kind: (found[kind.name][0], sum(found[kind.name]))
    )


def _like(kind: Kind) -> list[str]:
    """Files of T3 that would go with the other files of a kind."""
    return [k.t3 for k in KINDS if (k.s3gen, k.tokenizer) == (kind.s3gen, kind.tokenizer)]


def locate(model: str = DEFAULT, *, speaks: bool = True) -> Checkpoint:
    """Find a model's files; those of a hub model are downloaded if they are not cached.

    ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` have their usual meaning; an
    interrupted download is resumed.

    Args:
        speaks: False needs only what converts recordings: neither T3 nor a text tokenizer, and a
            voice encoder only for voices that texts are spoken with.

    Raises:
        InputError: unknown model.
        WeightsError: files are missing or cannot be downloaded.
    """
    check_name(model)
    # a known name wins over a directory of that name, which is ./chatterbox
    if release := _release(model):
        kind, snapshot = release
        if snapshot != on_hub(model):
            log.warning("'%s' is not here: using %s, which is", model, kind.name)
        snapshot = snapshot if speaks else _converting(snapshot, kind)
        directory = hub.fetch(snapshot, kind.files if speaks else ())
        shared = hub.fetch(kind.shared, kind.files) if kind.shared else None
    else:
        directory, shared = _on_disk(model), None
        kind = kind_of(directory)
    checkpoint = Checkpoint(model, directory, ModelConfig(), "", kind, shared)
    return checked(_configured(checkpoint, speaks=speaks))


def checked(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the identity of its voices.

    Raises:
        WeightsError: a file is too small for the config, or cannot be read.
    """
    config, encoder, s3gen = checkpoint.config, checkpoint.voice_encoder, checkpoint.s3gen
    file_sizes.check(config, checkpoint.t3, encoder, s3gen)
    try:
        identity = digests.of_voices(config, encoder, s3gen)
    except OSError as error:
        raise WeightsError(
            f"{error.filename} cannot be read ({error.strerror}): check the permissions"
        ) from error
    return dataclasses.replace(checkpoint, voice_identity=identity)


def _configured(checkpoint: Checkpoint, *, speaks: bool = True) -> Checkpoint:
    """The checkpoint with its config.

    Args:
        speaks: as of ``locate``.

    Raises:
        WeightsError: a file is missing, or config.json is damaged.
    """
    kind, directory = checkpoint.kind, checkpoint.directory
    required = kind.required if speaks else (kind.s3gen,)
    if missing := [name for name in required if not checkpoint.path(name).is_file()]:
        names = ", ".join(" or ".join(_like(kind)) if n == kind.t3 else n for n in missing)
        raise WeightsError(
            f"'{directory}' lacks {names}; a model directory needs "
            f"{', '.join(required)} (and {CONDITIONALS} for a voice of its own)"
        )
    return dataclasses.replace(checkpoint, config=read_config(directory, kind.config))


def known_config(model: str, *, speaks: bool = True) -> ModelConfig:
    """The config of a model by its name, or of a directory by the names of its files and its
    config.json: what can be asked of it, before anything is downloaded or loaded.

    Args:
        speaks: as of ``locate``.

    Raises:
        InputError: unknown model.
        WeightsError: the directory lacks a file, or its config.json is damaged.
    """
    check_name(model)
    if on_hub(model):
        return kind_named(model).config
    place = _on_disk(model)
    found = Checkpoint(model, place, ModelConfig(), "", kind_of(place))
    return _configured(found, speaks=speaks).config


def _release(model: str) -> tuple[Kind, Snapshot] | None:
    """What a hub model's name stands for now: its older version if only that one is here."""
    snapshot = on_hub(model)
    if snapshot is None:
        return None
    name, at, revision = model.partition("@")
    older = families.OLDER.get(name)
    if older and hub.in_cache(snapshot) is None:
        other = HUB[older].at(revision) if at else HUB[older]
        if hub.in_cache(other):
            return HUB_KINDS[older], other
    return HUB_KINDS[name], snapshot


def _converting(snapshot: Snapshot, kind: Kind) -> Snapshot:
    """What of a hub model converts recordings, if not all of it is here."""
    if hub.in_cache(snapshot):
        return snapshot
    return snapshot.only({kind.s3gen, kind.voice_encoder, CONDITIONALS})


def kind_named(model: str) -> Kind:
    """The kind of a known model, at any revision."""
    return HUB_KINDS.get(model.partition("@")[0], CHATTERBOX)


def snapshots(model: str) -> list[Snapshot]:
    """Everything that a hub model is made of; empty for a built-in one.

    Raises:
        InputError: not the name of a model.
    """
    if model in BUILT_IN:
        return []
    snapshot = on_hub(model)
    if snapshot is None:
        raise InputError(f"'{model}' is no name of a model; known: {', '.join(available())}")
    shared = kind_named(model).shared
    return [snapshot, shared] if shared else [snapshot]


def cached(model: str) -> Path | None:
    """Directory of a known model if all of its files are here; uses no network."""
    found = [hub.in_cache(snapshot) for snapshot in snapshots(model)]
    if not found:
        return built_in(model)
    return found[0] if all(found) else None


def download(model: str) -> Path:
    """Directory of a known model's files; what is not here is downloaded.

    Raises:
        InputError: not the name of a model.
        WeightsError: cannot be downloaded, or is not what was released.
    """
    found = [hub.fetch(snapshot, kind_named(model).files) for snapshot in snapshots(model)]
    return found[0] if found else built_in(model)


def identity(checkpoint: Checkpoint) -> str:
    """Digest of the config and of samples of all files: changes when the model's output may."""
    names = checkpoint.kind.files
    paths = (checkpoint.s3gen if n == checkpoint.kind.s3gen else checkpoint.path(n) for n in names)
    return digests.of_model(checkpoint.config, paths)


def must_download(model: str, *, speaks: bool = True) -> Snapshot | None:
    """What ``locate`` will need the network for, if anything."""
    release = _release(model)
    if release is None:
        return None
    kind, snapshot = release
    snapshot = snapshot if speaks else _converting(snapshot, kind)
    wanted = [snapshot, kind.shared] if kind.shared else [snapshot]
    return next((s for s in wanted if hub.in_cache(s) is None), None)
