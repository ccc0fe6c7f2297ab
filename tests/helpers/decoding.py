"""What a client hears: answers of the server as samples."""

from __future__ import annotations

import base64
import io
import json

import av
import numpy as np

from chatterbox_opt.audio.streaming import PCM

# samples that an encoder may add; the others add none
FRAME = {"mp3": 576, "aac": 1024}


def decoded(content: bytes, format_: str = "") -> np.ndarray:
    """Samples at 24 kHz; only a format without a header must be named."""
    if format_ == PCM:
        return np.frombuffer(content, "<i2").astype(np.float32) / 32768
    resampler = av.AudioResampler(format="flt", layout="mono", rate=24_000)
    with av.open(io.BytesIO(content)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(
        [frame.to_ndarray().ravel() for frame in frames + resampler.resample(None)]
    )


def count(content: bytes, format_: str) -> int:
    """Number of samples."""
    return len(decoded(content, format_))


def events(content: bytes) -> list[dict]:
    """Server-sent events."""
    parts = content.decode().split("\n\n")
    assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def audio_of(content: bytes) -> bytes:
    """The sound of server-sent events that end well."""
    *deltas, done = events(content)
    assert done["type"] == "speech.audio.done", done
    return b"".join(base64.b64decode(one["audio"]) for one in deltas)
