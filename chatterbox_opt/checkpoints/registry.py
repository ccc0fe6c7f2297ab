"""The Chatterbox family: names, files, and how to find, download and check them.

Knows file names and the hub. Knows nothing of tensors inside the files (see checkpoints/loader.py), and
imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from chatterbox_opt.config.model_config import ModelConfig, read_config
from chatterbox_opt.errors import InputError, WeightsError

VOICE_ENCODER = "ve.safetensors"
T3 = "t3_cfg.safetensors"
S3GEN = "s3gen.safetensors"
TOKENIZER = "tokenizer.json"
CONDITIONALS = "conds.pt"
REQUIRED = (VOICE_ENCODER, T3, S3GEN, TOKENIZER)  # conds.pt may be absent, as upstream allows
FILES = (*REQUIRED, CONDITIONALS)
VOICES = "voices"  # folder of named voices that come with a model; the hub's have none

DEFAULT = "chatterbox"
HUB = {DEFAULT: "ResembleAI/chatterbox"}  # name -> hub repository
BUILT_IN = ("pico",)  # in directories of these names inside the package


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete set of files on this disk.

    Attributes:
        name: as the person gave it.
        directory: where the files are.
        config: of all stages.
        voice_identity: changes when the encoders that read a recording change.
    """

    name: str
    directory: Path
    config: ModelConfig
    voice_identity: str

    def path(self, file: str) -> Path:
        return self.directory / file

    def voices(self) -> dict[str, Path]:
        """Named voices that come with the model, see ``voice.from_tensors``."""
        return _voices(self.directory)


def available() -> dict[str, str]:
    """Known model names and where each comes from, for messages and tables."""
    known = {name: f"hub: {repository}" for name, repository in HUB.items()}
    return known | dict.fromkeys(BUILT_IN, "built in")


def built_in(name: str) -> Path:
    """Directory of a model that ships inside the package."""
    return Path(__file__).parents[1] / name


def shipped_voices(model: str) -> dict[str, Path]:
    """Named voices that come with a model, without network; none for one that is not here."""
    if model in HUB:
        return {}
    return _voices(_on_disk(model))


def _fetched(repository: str) -> Path:
    # a complete cache is used as it is: no network, no waiting for one
    return in_cache(repository) or from_hub(repository)


def _on_disk(model: str) -> Path:
    return built_in(model) if model in BUILT_IN else Path(model)


def _voices(directory: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((directory / VOICES).glob("*.safetensors"))}


def check_name(model: str) -> None:
    """Say early, without touching disk or network much, that a model cannot be what is meant.

    Raises:
        InputError: neither a known name nor a directory.
    """
    if model in available() or Path(model).is_dir():
        return
    raise InputError(
        f"unknown model '{model}'; known: {', '.join(available())}, or a directory with {T3} in it"
    )


def locate(model: str = DEFAULT) -> Checkpoint:
    """Find a model's files, downloading them if they are on the hub and not yet here.

    ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` mean what they always mean;
    an interrupted download continues where it stopped.

    Raises:
        InputError: unknown model.
        WeightsError: files missing, or not to be had.
    """
    check_name(model)
    # a directory with the hub's name is ./chatterbox
    directory = _fetched(HUB[model]) if model in HUB else _on_disk(model)
    if missing := [name for name in REQUIRED if not (directory / name).is_file()]:
        raise WeightsError(
            f"'{directory}' lacks {', '.join(missing)}; a model directory needs "
            f"{', '.join(REQUIRED)} (and {CONDITIONALS} for a voice of its own)"
        )
    config = read_config(directory)
    return Checkpoint(model, directory, config, _voice_identity(directory))


def from_hub(repository: str) -> Path:
    """Download what the local cache lacks of a hub repository; return its directory there.

    The hub's library shows a bar per file and resumes what was interrupted.

    Raises:
        WeightsError: not in the cache and not reachable, or not allowed.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # the hub's transport is requests, httpx or httpx2, by version; its errors are found here
    bases = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    failures: tuple[type[Exception], ...] = (OSError, *bases)
    try:
        paths = [Path(hf_hub_download(repository, name)) for name in FILES]
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            _ways_out(repository, "not here yet and the hub cannot be reached")
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        reason = f"not here, and the hub answered {status}"
        raise WeightsError(_ways_out(repository, reason)) from error
    except failures as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        reason = f"not here, and the download failed: {first}"
        raise WeightsError(_ways_out(repository, reason)) from error
    return paths[0].parent


def in_cache(repository: str) -> Path | None:
    """Directory of a repository that is complete in the local cache, without any network."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, name) for name in FILES]
    return Path(found[0]).parent if found and all(isinstance(f, str) for f in found) else None  # type: ignore[arg-type]


def identity(checkpoint: Checkpoint) -> str:
    """Digest of everything that a model's sound depends on, as ``_voice_identity`` takes it."""
    digest = hashlib.blake2b(repr(checkpoint.config).encode(), digest_size=12)
    for name in FILES:
        if checkpoint.path(name).is_file():
            _add_file(digest, checkpoint.path(name))
    return digest.hexdigest()


def must_download(model: str) -> bool:
    """Whether ``locate`` will need the network for this model."""
    return model in HUB and in_cache(HUB[model]) is None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network, by the hub library's own reading."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _ways_out(repository: str, reason: str) -> str:
    offline = " (HF_HUB_OFFLINE is set)" if is_offline() else ""
    return (
        f"the weights of {repository} are {reason}{offline}. Three ways out: "
        "(1) connect and run again, with HF_TOKEN or HF_ENDPOINT if your network needs them; "
        f"(2) --model DIR with a copy of {', '.join(FILES)}; "
        f"(3) --model {BUILT_IN[0]} speaks with the small built-in model"
    )


def _voice_identity(directory: Path) -> str:
    """Digest of what turns a recording into a Voice: all of the voice encoder (6 MB), and of
    s3gen's half gigabyte its header and 64 blocks spread over the file."""
    digest = hashlib.blake2b((directory / VOICE_ENCODER).read_bytes(), digest_size=16)
    _add_file(digest, directory / S3GEN)
    return digest.hexdigest()


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    """Add a file's header and 64 blocks spread over it."""
    size, block = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        for i in range(64):
            file.seek(i * max(size - block, 0) // 63)
            digest.update(file.read(block))
