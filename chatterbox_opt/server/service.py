"""From what a client asks for to an answer: the path that all endpoints share.

Responsible for the order: admission, model, voice, synthesis, answer. Not responsible for the names
of any client's fields (clients/).
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.responses import Response

from chatterbox_opt.audio.encoders import MEDIA_TYPES
from chatterbox_opt.audio.streaming import PCM, WAV, wav_header
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError
from chatterbox_opt.request import CHUNK, LOW
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.server import errors
from chatterbox_opt.server.admission import Admission
from chatterbox_opt.server.engines import Engines
from chatterbox_opt.server.metrics import Metrics
from chatterbox_opt.server.response import (
    EVENT_STREAM,
    HEADERS,
    ConnectedResponse,
    SpeechResponse,
    events,
)
from chatterbox_opt.server.settings import ServerSettings
from chatterbox_opt.server.speech import SpeechJob, SpeechStream, start
from chatterbox_opt.server.voices import cast_of, find_voice, voice_names

STREAM, EVENTS, WHOLE = "stream", "events", "whole"  # how the sound is sent
UPLOAD_THREADS = 2
DONE, FAILED, REFUSED, GONE = "done", "failed", "refused", "gone"  # outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechRequest:
    """What a client asks for, in nobody's field names.

    Attributes:
        text: of any length.
        model, voice: names, or None.
        sampling: as a function, since its errors are the client's.
        language, markup, format, speed: see ``SpeechJob``.
        send: how the sound is sent.
        latency: see ``Request``.
    """

    text: str
    model: str | None = None
    voice: str | None = None
    sampling: Callable[[], Sampling] = Sampling
    language: str | None = None
    markup: bool = False
    format: str = "mp3"
    speed: float = 1.0
    send: str = STREAM
    latency: str = LOW


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may go on.

    Attributes:
        model: that serves it.
        voice: file of the voice, or None for the model's own.
        is_known: whether there is a voice of the requested name.
        active: requests that were in when it came, with itself.
    """

    model: str
    voice: Path | None
    is_known: bool
    active: int


@dataclass(slots=True)
class SpeechService:
    """The engines of a server with all that is around a request.

    What may take long has threads of its own. Those of asyncio are few, and every stream needs
    one for each piece.

    Attributes:
        settings, engines, admission, metrics: of the server.
        slow: a thread for each request: computes its voice, splits its text.
        uploads: the threads of recordings that clients send.
        before_closing: awaited before the engines are closed: the ends of other protocols.
    """

    settings: ServerSettings
    engines: Engines
    admission: Admission
    metrics: Metrics
    slow: Executor
    uploads: Executor
    before_closing: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, settings: ServerSettings, engines: Engines) -> SpeechService:
        """A service with counters of its own."""
        return cls(
            settings,
            engines,
            Admission(settings.limits),
            Metrics(),
            ThreadPoolExecutor(settings.limits.requests, "request"),
            ThreadPoolExecutor(UPLOAD_THREADS, "upload"),
        )

    def close(self) -> None:
        """Begin nothing more in threads; what runs in them is not waited for."""
        for threads in (self.slow, self.uploads):
            threads.shutdown(wait=False, cancel_futures=True)

    def respond(self, client: str, asked: SpeechRequest) -> Response:
        """The answer: sound, or an error. All work for it ends when the client goes.

        Args:
            client: its address.
        """
        return ConnectedResponse(lambda held: self._answer(client, asked, held))

    async def _answer(self, client: str, asked: SpeechRequest, held: AsyncExitStack) -> Response:
        paths: dict[str, str] = {}
        try:
            with self._counting_gone():
                stream, headers = await self._begin(client, asked, held, paths)
        except ChatterboxOptError as error:
            response = errors.error_response(error, paths)
            failed = response.status_code >= errors.FAILED
            self.metrics.requests.labels(FAILED if failed else REFUSED).inc()
            return response
        if asked.send == WHOLE:
            return await self._whole(stream, asked, headers, held)
        started = time.perf_counter()
        is_events = asked.send == EVENTS
        return SpeechResponse(
            events(stream) if is_events else stream.parts(),
            EVENT_STREAM if is_events else MEDIA_TYPES[asked.format],
            headers,
            stalled=self.settings.limits.stalled_seconds,
            on_end=lambda complete: self._count(stream, started, complete=complete),
        )

    @asynccontextmanager
    async def speech(self, client: str, asked: SpeechRequest) -> AsyncIterator[SpeechStream]:
        """The bytes, for those who do not answer by HTTP.

        Raises:
            ChatterboxOptError: before there is sound.
        """
        async with AsyncExitStack() as until:
            started = time.perf_counter()
            with self._counting_gone():
                stream, _ = await self._begin(client, asked, until, {})
            complete = False
            try:
                yield stream
                complete = True
            finally:
                self._count(stream, started, complete=complete)

    async def admit(
        self, client: str, model: str | None, voice: str | None, until: AsyncExitStack
    ) -> Admitted:
        """Count a request, and find what its names mean.

        Args:
            client: its address.
            model, voice: names, or None.
            until: gets what is held until the end.

        Raises:
            QueueFullError: too many are in already.
            UnknownVoiceError: there is no such voice, and voices are strict.
        """
        until.enter_context(self.admission.enter(client))
        until.enter_context(self.metrics.active.track_inprogress())
        active, known = self.admission.active, self.engines.known(model)
        # names are those of files
        spec = self.engines.spec(known)
        loop = asyncio.get_running_loop()
        names = await loop.run_in_executor(self.slow, voice_names, spec) if voice else {}
        found, is_known = find_voice(names, voice)
        if not is_known and self.settings.strict_voices:
            raise errors.UnknownVoiceError(
                f"there is no voice '{voice}'; GET /v1/audio/voices lists them"
            )
        return Admitted(known, found, is_known, active)

    async def _begin(
        self, client: str, asked: SpeechRequest, until: AsyncExitStack, paths: dict[str, str]
    ) -> tuple[SpeechStream, dict[str, str]]:
        """The speech whose first bytes are there, with the headers of the answer.

        Args:
            until: gets what is held until the end.
            paths: gets the names that stand for paths in messages.
        """
        admitted = await self.admit(client, asked.model, asked.voice, until)
        if admitted.voice and asked.voice:
            paths[str(admitted.voice)] = asked.voice
        spec = self.engines.spec(admitted.model)
        job = self._job(asked, admitted.voice)
        job.check(self.settings.limits.characters)
        if asked.markup:
            # names are those of files
            arguments = (spec, asked.text, asked.language)
            loop = asyncio.get_running_loop()
            cast = await loop.run_in_executor(self.slow, cast_of, *arguments)
            paths |= {str(one.voice): one.name for one in cast.members if one.voice}
            job = dataclasses.replace(job, cast=cast)
        engine = await until.enter_async_context(self.engines.use(admitted.model))
        if job.latency == LOW and admitted.active > engine.plan.slots:
            # parts of a chunk cost more work than whole ones: while requests wait for a slot,
            # that work is taken from all of them
            job = dataclasses.replace(job, latency=CHUNK)
        name = f"request-{next(self._numbers)}"
        limit = self.settings.limits.buffered
        stream = await start(engine, job, name, limit, self.slow)
        until.push_async_callback(stream.close)
        await stream.wait_for_sound()
        if stream.first_audio is not None:
            self.metrics.first_audio.observe(stream.first_audio)
        headers = {
            "X-Seed": str(stream.handle.seed),
            "X-Model": admitted.model,
            "X-Latency": job.latency,
        }
        if job.latency == LOW:  # what a player reckons its buffer with
            pieces = (seconds / job.speed for seconds in engine.hops.seconds)
            headers["X-Pieces"] = ",".join(f"{seconds:.3g}" for seconds in pieces)
        if not admitted.is_known:
            # a header cannot hold every character of a name, so it is not repeated
            headers["Warning"] = '199 - "no such voice: the model\'s own is used"'
        return stream, headers

    def _job(self, asked: SpeechRequest, voice: Path | None) -> SpeechJob:
        return SpeechJob(
            text=asked.text,
            voice=voice,
            sampling=asked.sampling(),
            language=asked.language,
            markup=asked.markup,
            format=PCM if asked.send == WHOLE and asked.format == WAV else asked.format,
            speed=asked.speed,
            latency=CHUNK if asked.send == WHOLE else asked.latency,
        )

    async def _whole(
        self,
        stream: SpeechStream,
        asked: SpeechRequest,
        headers: dict[str, str],
        held: AsyncExitStack,
    ) -> Response:
        """All bytes at once; a wav knows its length.

        Args:
            held: closed when all bytes are there: sending them takes nothing from others.
        """
        started, complete = time.perf_counter(), False
        try:
            content = b"".join([part async for part in stream.parts()])
            complete = True
        except ChatterboxOptError as error:
            return errors.error_response(error)
        finally:
            self._count(stream, started, complete=complete)
        await held.aclose()
        if asked.format == WAV:
            content = wav_header(len(content)) + content
        return Response(content, 200, {**HEADERS, **headers}, MEDIA_TYPES[asked.format])

    @contextmanager
    def _counting_gone(self) -> Iterator[None]:
        """Around what is done before there is sound."""
        try:
            yield
        except asyncio.CancelledError:
            self.metrics.requests.labels(GONE).inc()
            raise

    def _count(self, stream: SpeechStream, started: float, *, complete: bool) -> None:
        seconds = stream.samples / SAMPLE_RATE
        self.metrics.requests.labels(DONE if complete else GONE).inc()
        self.metrics.audio.inc(seconds)
        if complete and stream.first_audio is not None:
            elapsed = stream.first_audio + time.perf_counter() - started
            self.metrics.realtime.observe(seconds / elapsed)
