"""Digests by which caches and manifests know a model: of its config, its files, its encoders.

Responsible for what they are made of. They are in file names and manifests on users' disks, so they
must not change. Not responsible for which files a model has (registry.py); imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatterbox_opt.config.model_config import ENGLISH, ModelConfig

_LATER = ("backbone", "positions", "mean_flow")  # fields of the config, see ``_config_text``


def of_model(config: ModelConfig, paths: Iterable[Path]) -> str:
    """Digest of the config and of samples of all files: changes when the model's output may.

    Args:
        paths: of all files of the kind; those that are missing are left out.
    """
    digest = hashlib.blake2b(_config_text(config).encode(), digest_size=12)
    for path in paths:
        if path.is_file():
            _add_file(digest, path)
    return digest.hexdigest()


def of_voices(config: ModelConfig, encoder: Path, s3gen: Path) -> str:
    """Digest of the voice encoders: the whole voice encoder (6 MB), and of s3gen (0.5 GB) the
    header and 64 blocks spread over the file. What a model takes of a recording is part of it.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.blake2b(encoder.read_bytes() if encoder.is_file() else b"", digest_size=16)
    _add_file(digest, s3gen)
    digest.update(config.reference.kind.encode())
    return digest.hexdigest()


def _config_text(config: ModelConfig) -> str:
    """The config as identities have always hashed it; batch manifests and cache names contain them.

    The names are those that classes and fields had when the first manifest was written; fields
    that came later are only there where they are not the default.
    """
    parts: dict[str, tuple[str, Any]] = {
        "t3": ("T3Shape", config.t3),
        "flow": ("FlowShape", config.flow),
        "vocoder": ("VocoderShape", config.vocoder),
        "voice": ("VoiceShape", config.voice),
    }
    texts = []
    for part, (name, values) in parts.items():
        defaults = asdict(type(values)())
        fields = ", ".join(
            f"{key}={value!r}"
            for key, value in asdict(values).items()
            if key not in _LATER or value != defaults[key]
        )
        texts.append(f"{part}={name}({fields})")
    flags = f"made={config.random_weights}, spelled={config.needs_text_normalization}"
    if config.text != ENGLISH:
        flags += f", text={config.text}"
    return f"Shapes({', '.join(texts)}, {flags})"


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    """Hash a file's header and 64 blocks spread over it."""
    size, block = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        for i in range(64):
            file.seek(i * max(size - block, 0) // 63)
            digest.update(file.read(block))
