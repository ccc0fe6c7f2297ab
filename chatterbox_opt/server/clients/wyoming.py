"""The Wyoming protocol, by which Home Assistant speaks: JSON lines over TCP.

Responsible for its events, for text that comes in parts and for the bounds of what a client may
send. Not responsible for synthesis (service.py).

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
import queue
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
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
from chatterbox_opt.errors import ChatterboxOptError, TextError
from chatterbox_opt.request import LOW, Piece
from chatterbox_opt.server.errors import engine_errors, error_answer
from chatterbox_opt.server.service import SpeechRequest, SpeechService
from chatterbox_opt.server.timeouts import within
from chatterbox_opt.server.voices import voice_names
from chatterbox_opt.text.languages import languages_of
from chatterbox_opt.version import __version__

log = logging.getLogger(__name__)
MAX_BYTES = 1 << 20  # of an event
FORMAT: dict[str, int] = {"rate": SAMPLE_RATE, "width": 2, "channels": 1}
SEND_SECONDS = 60  # that a client may take for nothing at all
MAKER = Attribution(name="chatterbox-opt", url="https://github.com/resemble-ai/chatterbox")


class ArrivingText:
    """A text that one thread reads while a coroutine writes it."""

    def __init__(self, limit: int) -> None:
        self._parts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._left = limit

    def add(self, part: str) -> None:
        """Append a part.

        Raises:
            TextError: all parts together are too long.
        """
        self._left -= len(part)
        if self._left < 0:
            raise TextError("the text is too long: send it in parts")
        self._parts.put(part)

    def end(self) -> None:
        """There will be no more."""
        self._parts.put(None)

    def __iter__(self) -> Iterator[str]:
        while (part := self._parts.get()) is not None:
            yield part


class BoundedReader:
    """A stream of which no event is longer than ``MAX_BYTES``."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def readline(self) -> bytes:
        """As ``StreamReader``; longer lines than its own limit are a ValueError."""
        return await self._reader.readline()

    async def readexactly(self, size: int) -> bytes:
        """As ``StreamReader``; an end within is a ValueError, as what Wyoming takes for damage."""
        if not 0 <= size <= MAX_BYTES:
            raise ValueError(f"an event of {size} bytes")
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            raise ValueError("an event without its end") from error

    def feed_eof(self) -> None:
        """As ``StreamReader``."""
        self._reader.feed_eof()


class WyomingHandler(AsyncEventHandler):
    """One connection."""

    def __init__(
        self, service: SpeechService, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(cast(asyncio.StreamReader, BoundedReader(reader)), writer)
        address = writer.get_extra_info("peername")
        self._service, self._client = service, str(address[0]) if address else ""
        self._text: ArrivingText | None = None
        self._speaking: asyncio.Task[None] | None = None

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
        """Stop speaking when the client has gone."""
        await self._end_stream(cancel=True)

    async def _answer(self, event: Event) -> None:
        if Describe.is_type(event.type):
            await self._send(await asyncio.to_thread(self._info))
        elif Synthesize.is_type(event.type):
            if self._text is None:
                wanted = Synthesize.from_event(event)
                await self._speak(_checked(wanted.text), wanted.voice)
        elif SynthesizeStart.is_type(event.type):
            await self._end_stream(cancel=True)
            self._text = ArrivingText(self._service.settings.limits.characters)
            voice = SynthesizeStart.from_event(event).voice
            self._speaking = asyncio.create_task(self._speak_arriving(self._text, voice))
        elif SynthesizeChunk.is_type(event.type) and self._text is not None:
            self._text.add(_checked(SynthesizeChunk.from_event(event).text))
        elif SynthesizeStop.is_type(event.type) and self._text is not None:
            await self._end_stream(cancel=False)

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
        service, name = self._service, voice.name if voice else None
        try:
            async with AsyncExitStack() as until:
                admitted = await service.admit(self._client, None, name, until)
                engine = await until.enter_async_context(service.engines.use(admitted.model))
                language = self._language(voice)
                begin = functools.partial(
                    engine.pieces, text, admitted.voice, latency=LOW, language=language
                )
                await self._send_pieces(begin, text)
        except ChatterboxOptError as error:
            await self._fail(error)
        except (ConnectionError, asyncio.TimeoutError):
            self.writer.close()
        else:
            await self._send(SynthesizeStopped().event())

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

    async def _end_stream(self, *, cancel: bool) -> None:
        """End the text of a stream; wait until it is spoken, or stop speaking."""
        text, speaking, self._text, self._speaking = self._text, self._speaking, None, None
        if text is not None:
            text.end()
        if speaking is not None:
            if cancel:
                speaking.cancel()
            with suppress(asyncio.CancelledError):
                await speaking

    async def _send(self, event: Event) -> None:
        await within(SEND_SECONDS, self.write_event(event))

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


async def serve(service: SpeechService, listening: socket.socket) -> asyncio.Server:
    """Answer Wyoming clients of a socket that listens, until the server is closed."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await WyomingHandler(service, reader, writer).run()

    return await asyncio.start_server(connected, sock=listening)
