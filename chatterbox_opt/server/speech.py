"""One speech: from a client's text to encoded bytes, as fast as they are made.

Responsible for submitting to the engine, for encoding, and for what waits until the client reads.
Not responsible for HTTP (response.py).

    engine ── pieces ──> producer task: tempo, encoder ── bytes ──> buffer ──> one reader

The producer never waits for the reader, so a client that reads slowly does not hold a decode slot
for longer than the synthesis takes. What it has not read is bounded: beyond the bound the request
is cancelled.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path

from chatterbox_opt.audio.encoders import encoder
from chatterbox_opt.audio.tempo import Tempo
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.serving.handle import RequestHandle
from chatterbox_opt.errors import OutputError, TextError
from chatterbox_opt.request import LOW, Request
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.script.cast import Cast
from chatterbox_opt.server.errors import engine_errors
from chatterbox_opt.utils.wave import Wave


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechJob:
    """What a client wants to hear.

    Attributes:
        text: of any length.
        voice: file of the voice, or None for the model's own.
        sampling: with a seed or without.
        language: of the text, or None.
        markup: see ``Request``.
        cast: the voices that the markup names.
        format: one of ``encoders.FORMATS``.
        speed: 0.25 to 4.
        latency: see ``Request``.
    """

    text: str
    voice: Path | None = None
    sampling: Sampling = field(default_factory=Sampling)
    language: str | None = None
    markup: bool = False
    cast: Cast | None = None
    format: str = "mp3"
    speed: float = 1.0
    latency: str = LOW

    def check(self, characters: int) -> None:
        """Raise TextError if the text is longer than ``characters``."""
        if len(self.text) > characters:
            raise TextError(
                f"the text has {len(self.text):,} characters; {characters:,} are allowed: "
                "send it in parts"
            )


class SpeechStream:
    """The bytes of one speech; one coroutine reads them.

    Attributes:
        handle: of the engine's request.
        tokens: speech tokens that were made so far.
        samples: of the sound so far, before encoding.
        first_audio: seconds from ``started`` until there were bytes, or None.
    """

    def __init__(self, handle: RequestHandle, job: SpeechJob, limit: int, started: float) -> None:
        self.handle = handle
        self.tokens = self.samples = 0
        self.first_audio: float | None = None
        self._encoder, self._tempo = encoder(job.format), Tempo(job.speed)
        self._coding = threading.Lock()
        self._limit, self._started = limit, started
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._producer = asyncio.create_task(self._produce())

    async def wait_for_sound(self) -> None:
        """Wait until there are bytes.

        Raises:
            ChatterboxOptError: there will be none.
        """
        while not self._waiting and not self._producer.done():
            await self._wait()
        if not self._waiting:
            self._producer.result()

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The bytes, all that are there at once.

        Raises:
            ChatterboxOptError: of the synthesis, after the bytes before it.
        """
        while self._waiting or not self._producer.done():
            if self._waiting:
                part = b"".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                yield part
            else:
                await self._wait()
        self._producer.result()

    async def close(self) -> None:
        """Cancel what is left; its slot is free at the next readback."""
        self.handle.cancel()
        self._producer.cancel()
        await asyncio.wait({self._producer})
        if not self._producer.cancelled():
            self._producer.exception()  # it was reported, or nobody is there to hear of it

    async def _wait(self) -> None:
        """Until bytes were added, or the producer has ended."""
        self._changed.clear()
        waiting = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({waiting, self._producer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()

    async def _produce(self) -> None:
        try:
            with engine_errors():
                async for piece in self.handle:
                    self.tokens += piece.tokens
                    self._put(await asyncio.to_thread(self._encode, piece.samples))
                self._put(await asyncio.to_thread(self._rest))
        finally:
            self.handle.cancel()
            await asyncio.to_thread(self._free)

    # these run in threads, which go on when their task is cancelled: hence the lock

    def _encode(self, wave: Wave) -> bytes:
        with self._coding:
            changed = self._tempo.change(wave)
            self.samples += len(changed)
            return self._encoder.encode(changed)

    def _rest(self) -> bytes:
        with self._coding:
            changed = self._tempo.finish()
            self.samples += len(changed)
            return self._encoder.encode(changed) + self._encoder.finish()

    def _free(self) -> None:
        with self._coding:
            self._encoder.close()

    def _put(self, part: bytes) -> None:
        """Append bytes for the reader.

        Raises:
            OutputError: too many wait.
        """
        if not part:
            return
        if self.first_audio is None:
            self.first_audio = time.perf_counter() - self._started
        self._waiting.append(part)
        self._size += len(part)
        self._changed.set()
        if self._size > self._limit:
            raise OutputError("the client reads too slowly: the request was cancelled")


async def start(
    engine: Engine, job: SpeechJob, name: str, limit: int, threads: Executor
) -> SpeechStream:
    """Submit a job to the engine; if this is cancelled, so is the request.

    Args:
        name: of the request in the engine's log.
        limit: bytes that may wait for the reader.
        threads: in which a text is split and a voice computed, before the request is in the queue.

    Raises:
        TextError, VoiceError, InputError, QueueFullError: see ``Engine.submit``.
        DeviceError: another error of the engine.
    """
    started = time.perf_counter()
    how = (job.voice, job.sampling, job.latency, job.language)
    request = Request(name, job.text, *how, markup=job.markup, cast=job.cast)
    submitting = threads.submit(engine.submit, request, timeout=0)
    try:
        with engine_errors():
            handle = await asyncio.wrap_future(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel_request)  # if it has begun, it goes on
        raise
    return SpeechStream(handle, job, limit, started)


def _cancel_request(submitting: Future[RequestHandle]) -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
