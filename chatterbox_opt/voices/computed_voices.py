"""The file format of computed voices: safetensors with a digest of the content.

Responsible for writing one Voice and for recognizing a file that is not what was written. Not
responsible for where files are (voices/store.py). torch is imported only when a function is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.errors import first_line
from chatterbox_opt.utils.damage import DAMAGE_ERRORS

if TYPE_CHECKING:
    from torch import Tensor

    from chatterbox_opt.voice import Voice

FORMAT = 2  # of the files; changing it recomputes all of them
MAX_BYTES = 16 << 20  # a voice has 0.2 MB


def dump(key: str, voice: Voice, remark: str) -> bytes:
    """The content of a computed voice's file.

    Args:
        key: the voice's cache key; part of the digest, so a file cannot stand for another.
        remark: about the recording (``audio.files.Reference``), stored with the voice.
    """
    from safetensors.torch import save

    tensors = {name: t.contiguous().clone() for name, t in voice.tensors().items()}
    metadata = {"format": str(FORMAT), "remark": remark, "digest": _digest(key, remark, tensors)}
    return save(tensors, metadata)


def read(path: Path, key: str) -> tuple[Voice, str]:
    """The Voice and the remark of a file that ``dump`` wrote.

    Raises:
        ValueError: anything else; the message is the reason.
        OSError: the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from chatterbox_opt.voice import check, from_tensors

    if not path.is_file():
        raise ValueError("it is no regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes")
    content = path.read_bytes()  # not mapped: a file that changes later must not change the voice
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
    except (SafetensorError, *DAMAGE_ERRORS) as e:
        raise ValueError(first_line(e)) from e
    if metadata.get("format") != str(FORMAT):
        raise ValueError("it is of another format")
    remark = metadata.get("remark", "")
    if metadata.get("digest") != _digest(key, remark, tensors):
        raise ValueError("its content has changed")
    try:
        voice = from_tensors(tensors)
    except KeyError as error:
        raise ValueError(str(error)) from error
    check(voice)
    return voice, remark


def _digest(key: str, remark: str, tensors: Mapping[str, Tensor]) -> str:
    import torch

    digest = hashlib.blake2b(f"{FORMAT}\n{key}\n{remark}\n".encode(), digest_size=20)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
