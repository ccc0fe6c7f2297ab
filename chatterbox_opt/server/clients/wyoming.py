"""The Wyoming protocol, by which Home Assistant speaks: JSON lines over TCP.

Responsible for the events of one connection. Not responsible for what is read from it
(wyoming_reading.py), for who connects (wyoming_server.py) or for synthesis (service.py).

A client asks what there is (``describe``), then sends ``synthesize``; or, if it has the text from a
language model, ``synthesize-start``, any number of ``synthesize-chunk`` that may break anywhere,
and ``synthesize-stop``. A streaming client sends ``synthesize`` too, for servers that know nothing
else: it is ignored within a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, cast

from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Attribution, Describe, Info, TtsProgram, TtsVoice
from wyoming.server import AsyncEventHandler
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from chatterbox_opt.audio.streaming import PCM, to_pcm
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError, QueueFullError, TextError
from chatterbox_opt.request import LOW, Piece
from chatterbox_opt.server.clients.wyoming_reading import (
    CLIENT_SECONDS,
    ArrivingText,
    BoundedReader,
)
from chatterbox_opt.server.errors import engine_errors, error_answer
from chatterbox_opt.server.service import SpeechRequest, SpeechService
from chatterbox_opt.server.timeouts import within
from chatterbox_opt.server.voices import voice_names
from chatterbox_opt.text.languages import languages_of
from chatterbox_opt.version import __version__

log = logging.getLogger(__name__)
FORMAT: dict[str, int] = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}
MAX_JOBS = 8  # of one connection, the one that is spoken included
MAKER = Attribution(name="chatterbox-opt", url="https://github.com/resemble-ai/chatterbox")


class WyomingHandler(AsyncEventHandler):
    """One connection.

    What it speaks are jobs, one after the other, while the reader goes on: only so it hears that
    the client has gone. A client that closes its half of the connection has gone, too.
    """

    def __init__(
        self, service: SpeechService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._bounded = BoundedReader(reader)
        super().__init__(cast(asyncio.StreamReader, self._bounded), writer)
        address = writer.get_extra_info("peername")
        self._service, self._client = service, str(address[0]) if address else ""
        self._text: ArrivingText | None = None
        self._stream: asyncio.Task[None] | None = None
        self._jobs: list[asyncio.Task[None]] = []
        self._is_ending = False

    async def handle_event(self, event: Event) -> bool:
        """Answer an event; False ends the connection."""
        try:
            await self._answer(event)
        except ChatterboxOptError as error:
            await self._fail(error)
        except (KeyError, TypeError, AttributeError) as error:
            log.warning("a malformed %s event: %r", event.type, error)
            return False
        except (ConnectionError, asyncio.TimeoutError):
            return False
        return True

    async def disconnect(self) -> None:
        """Stop speaking when the client has gone, or was too late."""
        self._end_text()
        await cancelled(self._jobs)
        if self._bounded.is_late:
            await self._fail(TextError(f"nothing came for {CLIENT_SECONDS} s: begin again"))

    async def finish(self) -> None:
        """Take no more jobs; wait for those that there are."""
        self._is_ending = True
        while self._jobs:
            await asyncio.wait(self._jobs)

    async def _answer(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._send(await asyncio.to_thread(self._info))
        elif Synthesize.is_type(event.type):
            if self._text is None:
                wanted = Synthesize.from_event(event)
                self._begin(functools.partial(self._speak, _checked(wanted.text), wanted.voice))
        elif SynthesizeStart.is_type(event.type):
            if self._text is not None and self._stream is not None:
                self._end_text()
                await cancelled([self._stream])
            text = ArrivingText(self._service.settings.limits.characters)
            voice = SynthesizeStart.from_event(event).voice
            self._stream = self._begin(functools.partial(self._speak_arriving, text, voice))
            self._text = text
            self._expect_text()
        elif SynthesizeChunk.is_type(event.type) and self._text is not None:
            part = _checked(SynthesizeChunk.from_event(event).text)
            self._text.add(part)
            if part.strip():
                self._expect_text()
        elif SynthesizeStop.is_type(event.type):
            self._end_text()

    def _expect_text(self) -> None:
        self._bounded.due = asyncio.get_running_loop().time() + CLIENT_SECONDS

    def _end_text(self) -> None:
        if self._text is not None:
            self._text.end()
        self._text = self._bounded.due = None

    def _begin(self, job: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """The task of a job, which comes after those that there are.

        Raises:
            QueueFullError: there are too many, or the server ends.
        """
        if self._is_ending:
            raise QueueFullError("the server ends: ask again later")
        if len(self._jobs) >= MAX_JOBS:
            raise QueueFullError(f"{MAX_JOBS} texts wait on this connection: wait for one of them")
        task = asyncio.create_task(self._after(self._jobs[-1:], job))
        self._jobs.append(task)
        task.add_done_callback(self._jobs.remove)
        return task

    async def _after(
        self,
        before: Sequence[asyncio.Task[None]],
        job: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        if before:
            await asyncio.wait(before)
        try:
            await job()
        except ChatterboxOptError as error:
            await self._fail(error)
        except (ConnectionError, asyncio.TimeoutError):
            self.writer.close()

    def _info(self) -> Event:
        model = self._service.engines.models[0]
        names = voice_names(self._service.engines.spec(model))
        known = list(self._languages())
        common: dict[str, Any] = {"attribution": MAKER, "installed": True, "version": __version__}
        voices = [
            TtsVoice(name=name, description=name, languages=known, **common) for name in names
        ]
        program = TtsProgram(
            name="chatterbox-opt",
            description=f"Chatterbox ({model})",
            voices=voices,
            supports_synthesize_streaming=True,
            **common,
        )
        return Info(tts=[program]).event()

    def _languages(self) -> tuple[str, ...]:
        return languages_of(registry.known_config(self._service.engines.models[0]))

    def _language(self, voice: SynthesizeVoice | None) -> str | None:
        """The code of a language such as de, de_DE or de-DE, if the model knows it."""
        wanted = str(voice.language or "") if voice else ""
        code = wanted.replace("_", "-").partition("-")[0].lower()
        return code if code in self._languages() else None

    async def _speak(self, text: str, voice: SynthesizeVoice | None) -> None:
        name, language = voice.name if voice else None, self._language(voice)
        asked = SpeechRequest(text=text, voice=name, language=language, format=PCM)
        async with self._service.speech(self._client, asked) as stream:
            await self._send(AudioStart(**FORMAT).event())
            async for part in stream.parts():
                await self._send(AudioChunk(audio=part, **FORMAT).event())
            await self._send(AudioStop().event())

    async def _speak_arriving(self, text: ArrivingText, voice: SynthesizeVoice | None) -> None:
        await text.begun.wait()  # a stream without text is not admitted
        if not text.is_empty:
            await self._speak_begun(text, voice)
        await self._send(SynthesizeStopped().event())

    async def _speak_begun(self, text: ArrivingText, voice: SynthesizeVoice | None) -> None:
        service, name = self._service, voice.name if voice else None
        async with AsyncExitStack() as until:
            admitted = await service.admit(self._client, None, name, until)
            engine = await until.enter_async_context(service.engines.use(admitted.model))
            begin = functools.partial(
                engine.pieces, text, admitted.voice, latency=LOW, language=self._language(voice)
            )
            await self._send_pieces(begin, text)

    async def _send_pieces(self, begin: Callable[[], Any], text: ArrivingText) -> None:
        """Send the sound of a text while it comes.

        Args:
            begin: makes the iterator of its pieces.

        A thread of its own waits for text and sound. It is the only one that uses the iterator, so
        that after a cancellation closing comes after the call that is running.
        """
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "wyoming")

        async def run(call: Callable[..., Any], *arguments: Any) -> Any:
            with engine_errors():
                return await loop.run_in_executor(thread, call, *arguments)

        pieces = await run(begin)
        try:
            began = False
            while (piece := await run(next, pieces, None)) is not None:
                if not began:
                    await self._send(AudioStart(**FORMAT).event())
                    began = True
                await self._send(_chunk(piece))
            if began:
                await self._send(AudioStop().event())
        finally:
            text.end()
            thread.submit(pieces.close)
            thread.shutdown(wait=False)

    async def _send(self, event: Event) -> None:
        await within(CLIENT_SECONDS, self.write_event(event))

    async def _fail(self, error: ChatterboxOptError) -> None:
        _, body = error_answer(error, {})
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            await self._send(Error(text=body["error"]["message"]).event())


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"a text of type {type(text).__name__}")
    return text


def _chunk(piece: Piece) -> Event:
    return AudioChunk(audio=to_pcm(piece.samples), **FORMAT).event()


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    left = list(tasks)
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
