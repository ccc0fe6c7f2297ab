"""The server as its clients see it, with a real engine over a tiny model."""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
from helpers.common import SAMPLE
from helpers.decoding import FRAME, audio_of, count, decoded, events
from helpers.http_server import running, settings_of
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncUnixClient
from wyoming.error import Error
from wyoming.info import Describe
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

from chatterbox_opt import Sampling
from chatterbox_opt.audio import prebuffer
from chatterbox_opt.audio.encoders import FORMATS
from chatterbox_opt.audio.streaming import to_pcm
from chatterbox_opt.cli.synth import streaming
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.server.clients import wyoming_server
from chatterbox_opt.server.clients.wyoming import WyomingHandler
from chatterbox_opt.server.engines import Engines
from chatterbox_opt.server.service import SpeechService

SPEECH = "/v1/audio/speech"
TEXT = "Hello there."
KNOBS = {"seed": 3, "max_tokens": 20, "cfm_steps": 2}


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    with running(settings_of(directory, str(tiny))) as one:
        yield one


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def library(server):
    with server.client() as http:
        yield openai.OpenAI(base_url="http://server/v1", api_key="any", http_client=http)


@pytest.fixture(scope="module")
def samples(client, server) -> bytes:
    """What the engine makes of the text by itself."""
    assert client.post(SPEECH, json=body("Hi.")).status_code == 200
    pieces = server.engines[0].pieces(TEXT, None, Sampling(**KNOBS), latency="low")
    return b"".join(to_pcm(piece.samples) for piece in pieces)


@pytest.fixture(scope="module")
def whole(server, samples) -> bytes:
    return to_pcm(server.engines[0].synthesize(TEXT, None, Sampling(**KNOBS)).samples)


def body(text: str = TEXT, **more) -> dict:
    return {"input": text, "response_format": "pcm", **KNOBS, **more}


def test_the_sound_is_the_engines_own(client, samples, whole):
    assert client.post(SPEECH, json=body()).content == samples
    for more in ({"split": True}, {"stream": False}):
        assert client.post(SPEECH, json=body(**more)).content == whole
    slow = client.post(SPEECH, json=body(speed=0.5)).content
    assert len(slow) == pytest.approx(2 * len(samples), rel=0.05)


def test_the_seed_that_was_drawn_makes_the_same_sound(client):
    drawn = client.post(SPEECH, json={**body(), "seed": None})
    again = client.post(SPEECH, json=body(seed=int(drawn.headers["x-seed"])))
    assert drawn.content == again.content


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("sent", [{}, {"stream_format": "sse"}, {"stream": False}], ids=str)
def test_each_format_is_whole(client, samples, whole, format_, sent):
    answer = client.post(SPEECH, json=body(response_format=format_, **sent))
    is_whole, is_events = "stream" in sent, "stream_format" in sent
    kind = answer.headers["content-type"]
    assert kind.startswith("text/event-stream" if is_events else "audio/")
    assert ("content-length" in answer.headers) is is_whole
    content = audio_of(answer.content) if is_events else answer.content
    excess = count(content, format_) - len(whole if is_whole else samples) // 2
    assert abs(excess) <= FRAME.get(format_, 0)
    if format_ == "wav" and is_whole:
        with wave.open(io.BytesIO(content)) as file:
            assert file.getnframes() == len(file.readframes(1 << 30)) // 2 == len(whole) // 2


@pytest.mark.parametrize("format_", FORMATS)
def test_openai_library(library, tmp_path, format_):
    asked = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": format_}
    made = library.audio.speech.create(**asked, extra_body=KNOBS).content
    path = tmp_path / f"a.{format_}"
    with library.audio.speech.with_streaming_response.create(**asked, extra_body=KNOBS) as answer:
        answer.stream_to_file(path)
    content = path.read_bytes()
    # an ogg stream has a number that is drawn anew
    assert len(content) == len(made) if format_ == "opus" else content == made


def test_openai_library_and_events(library, samples, server):
    answer = library.audio.speech.create(
        model="gpt-4o-mini-tts", voice={"id": "default"}, input=TEXT, response_format="pcm",
        stream_format="sse", instructions="calm", extra_body=KNOBS,
    )  # fmt: skip
    assert audio_of(answer.content) == samples
    done = events(answer.content)[-1]
    assert done["type"] == "speech.audio.done"
    usage = done["usage"]
    tokenizer = server.engines[0].pipeline.decoder.tokenizer
    assert usage["input_tokens"] == len(tokenizer.encode(TEXT, None))
    by_itself = server.engines[0].speech_tokens(TEXT, None, Sampling(**KNOBS))
    assert usage["output_tokens"] == len(by_itself)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_openai_library_lists_and_errors(library, server):
    names = [model.id for model in library.models.list()]
    assert names == list(server.service.engines.models)
    assert library.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        library.audio.speech.create(
            model="x", voice="y", input=TEXT, extra_body={"temperature": 99}
        )
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        library.audio.speech.create(model="x", voice="y", input=" ... ")
    assert caught.value.param == "input"


def test_the_page_reckons_with_the_players_figures(client):
    """It is in another language; tests/e2e/test_page.py compares what both reckon."""
    found = re.findall(r"\b([A-Z_]+) = ([\d.]+)", client.get("/").text)
    figures = {name: float(value) for name, value in found}
    assert figures["RATE"] == SAMPLE_RATE
    assert figures["MARGIN"] == prebuffer.MARGIN
    assert figures["SECONDS_PER_LETTER"] == streaming.SECONDS_PER_LETTER


def test_many_clients_get_their_own_sound(server, client):
    import concurrent.futures

    texts = [f"Number {number}." for number in range(8)]
    slots = server.service.engines._served[server.service.engines.models[0]].engine.plan.slots
    assert slots >= 8, "otherwise some would get whole chunks"
    alone = [
        to_pcm(np.concatenate([p.samples for p in server.engines[0].pieces(
            text, None, Sampling(**{**KNOBS, "seed": seed}), latency="low")]))
        for seed, text in enumerate(texts)
    ]  # fmt: skip

    def ask(seed: int) -> bytes:
        with server.client() as own:
            return own.post(SPEECH, json=body(texts[seed], seed=seed)).content

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == alone


def test_a_voice_is_uploaded_used_and_deleted(client, samples):
    with SAMPLE.open("rb") as file:
        added = client.post("/v1/audio/voices", data={"name": "anna"}, files={"file": file})
    assert added.status_code == 201 and added.json() == {"id": "anna", "name": "anna"}
    assert {"id": "anna", "name": "anna"} in client.get("/v1/audio/voices").json()["voices"]
    for name in ("anna", "Anna", "anna.flac"):
        answer = client.post(SPEECH, json=body(voice=name))
        assert answer.status_code == 200 and "warning" not in answer.headers
        assert answer.content != samples
    assert client.delete("/v1/audio/voices/anna").json() == {"id": "anna", "deleted": True}
    assert client.delete("/v1/audio/voices/anna").status_code == 404
    assert client.post(SPEECH, json=body(voice="anna")).content == samples


def test_a_name_is_no_path(client, samples, tmp_path):
    recording = tmp_path / "a.wav"
    recording.write_bytes(SAMPLE.read_bytes())
    for name in (str(recording), "../a.wav", "a\0b", "\ud800", ""):
        answer = client.post(
            SPEECH,
            content=json.dumps(body(voice=name)),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code in (200, 400, 422)
        assert answer.status_code != 200 or answer.content == samples


def test_sillytavern(client):
    voices = client.get("/get_predefined_voices").json()
    assert {"display_name": "default", "filename": "default"} in voices
    assert "default" in client.get("/get_reference_files").json()
    asked = {
        "text": "Hi.", "voice_mode": "predefined", "predefined_voice_id": "default", "seed": 3,
        "temperature": 0.8, "exaggeration": 0.5, "cfg_weight": 0.5, "speed_factor": 1,
        "language": "en", "split_text": True, "chunk_size": 120, "output_format": "wav",
    }  # fmt: skip
    answer = client.post("/tts", json=asked)
    assert answer.status_code == 200, answer.text
    with wave.open(io.BytesIO(answer.content)) as file:
        assert file.getnframes() > 0 and answer.headers["x-seed"] == "3"
    asked |= {"voice_mode": "clone", "reference_audio_filename": "default", "seed": -1}
    assert len(decoded(client.post("/tts", json={**asked, "output_format": "opus"}).content)) > 0
    streamed = client.get("/tts-stream", params={"text": "Hi.", "seed": 3})
    assert len(decoded(streamed.content)) > 0


def unix_socket(path: str) -> socket.socket:
    Path(path).unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    return listening


async def _events(path: str, *sent) -> list:
    async with AsyncUnixClient(path) as client:
        for event in sent:
            await client.write_event(event.event())
        received = []
        while (event := await client.read_event()) is not None:
            received.append(event)
            last = SynthesizeStopped if isinstance(sent[-1], SynthesizeStop) else AudioStop
            if last.is_type(event.type) or event.type in ("info", "error"):
                break
        return received


@pytest.fixture
def wyoming(server, tmp_path):
    """Runs a conversation with a Wyoming server that has the engine of the HTTP server."""
    short = replace(server.service.settings.limits, characters=100)

    def converse(*sent):
        async def run():
            # its engines are of the other server's asyncio loop, so this one has none of its own
            service = type(server.service).of(
                replace(server.service.settings, limits=short), _SameEngine(server.service.engines)
            )
            path = str(tmp_path / "socket")
            listening = await wyoming_server.serve(service, unix_socket(path))
            async with listening:
                return await asyncio.wait_for(_events(path, *sent), 60)

        return asyncio.run(run())

    return converse


class _SameEngine:
    """The engines of another server, in this loop."""

    def __init__(self, engines) -> None:
        self._engines = engines
        self.models, self.spec, self.known = engines.models, engines.spec, engines.known

    def use(self, model):
        import contextlib

        @contextlib.asynccontextmanager
        async def use():
            yield self._engines._served[model].engine

        return use()


def test_wyoming_describes_all_voices(wyoming, samples):
    (info,) = wyoming(Describe())
    (program,) = info.data["tts"]
    assert program["supports_synthesize_streaming"] and program["installed"]
    assert [voice["name"] for voice in program["voices"]] == ["default"]
    assert program["voices"][0]["languages"] == ["en"]


def test_wyoming_speaks(wyoming, samples):
    first, *chunks, last = wyoming(Synthesize("Hi.", voice=SynthesizeVoice(name="default")))
    assert AudioStart.is_type(first.type) and first.data["rate"] == 24_000
    assert chunks and all(AudioChunk.is_type(one.type) and one.payload for one in chunks)
    assert AudioStop.is_type(last.type)


def test_wyoming_streams_text_that_breaks_anywhere(wyoming, samples):
    parts = [SynthesizeChunk(part) for part in ("Hi the", "re. An", "d bye", ".")]
    events = wyoming(SynthesizeStart(), *parts, Synthesize("Hi there. And bye."), SynthesizeStop())
    kinds = [event.type for event in events]
    assert kinds[0] == "audio-start" and kinds[-2:] == ["audio-stop", "synthesize-stopped"]
    assert kinds.count("audio-start") == 1, "the second request is for servers that do not stream"


def test_wyoming_errors(wyoming, samples):
    for sent in ([Synthesize("...")], [Synthesize("a" * 101)],
                 [SynthesizeStart(), SynthesizeChunk("a" * 101)]):  # fmt: skip
        assert Error.is_type(wyoming(*sent)[-1].type)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b'{"type": "synthesize"}\n', b'{"type": "x", "data_length": 1e12}\n',
             b'{"type": "x", "data_length": 999999999999}\n{', b"\xff\n", b"x" * 100_000]
)  # fmt: skip
def test_wyoming_rubbish_ends_the_connection_and_nothing_else(server, tmp_path, line):
    async def run():
        path = str(tmp_path / "socket")
        async with await wyoming_server.serve(server.service, unix_socket(path)):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            return await asyncio.wait_for(_events(path, Describe()), 10)

    assert asyncio.run(run())[0].type == "info"


@pytest.mark.parametrize(
    ("kind", "wanted", "code"),
    [("multilingual", "de", "de"), ("multilingual", "de_DE", "de"), ("multilingual", "DE-at", "de"),
     ("multilingual", "tlh", None), ("multilingual", None, None), ("turbo", "de", None),
     ("turbo", "en_GB", "en")],
)  # fmt: skip
def test_wyoming_and_the_languages_of_a_model(family, tmp_path, kind, wanted, code):
    service = SpeechService.of(settings := settings_of(tmp_path, str(family(kind))),
                               Engines(settings.engines))  # fmt: skip
    handler = WyomingHandler(service, None, FakeWriter())
    (program,) = handler._info().data["tts"]
    known = program["voices"][0]["languages"]
    assert len(known) == (23 if kind == "multilingual" else 1) and "en" in known
    assert handler._language(SynthesizeVoice(language=wanted)) == code


class FakeWriter:
    def get_extra_info(self, _):
        return None
