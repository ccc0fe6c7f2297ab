"""OpenAI's contract for speech, with the lists that its clients ask for.

Responsible for its field names and answers. Not responsible for synthesis (service.py).

Clients differ in what they send: any model name, voices as strings or objects, fields of newer
versions. What is unknown is ignored, what has no meaning here (``instructions``) too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, HTTPException, UploadFile
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from chatterbox_opt.audio.tempo import MAX_SPEED, MIN_SPEED
from chatterbox_opt.errors import VoiceError
from chatterbox_opt.request import CHUNK, LOW
from chatterbox_opt.sampling import Sampling, chosen
from chatterbox_opt.server import voices
from chatterbox_opt.server.service import EVENTS, STREAM, WHOLE, SpeechRequest, SpeechService

OWNER = "chatterbox-opt"
PREFIXES = ("/v1", "")  # clients add it or do not
VOICES, AUDIO_MODELS = "/audio/voices", "/audio/models"
PARAMETERS = tuple(one.name for one in fields(Sampling))


class VoiceObject(BaseModel):
    """A voice as newer clients send it."""

    id: str


class SpeechBody(BaseModel):
    """The body of ``POST /v1/audio/speech``; the fields after ``stream_format`` are our own."""

    model_config = ConfigDict(extra="ignore")

    input: str = Field(description="The text.")
    model: str | None = Field(None, description="A served model; any other name is the first one.")
    voice: str | VoiceObject | None = Field(None, description="A name of GET /v1/audio/voices.")
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = Field(
        "mp3", description="pcm is s16le, mono, 24 kHz; opus is in an ogg container."
    )
    speed: float = Field(1.0, ge=MIN_SPEED, le=MAX_SPEED, description="The pitch is kept.")
    instructions: str | None = Field(None, description="Ignored.")
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = Field(True, description="False: answer when all is there, with its length.")
    split: bool = Field(False, description="True: send whole sentences, not parts of them.")
    language: str | None = Field(None, description='Such as "de", for models that know several.')
    markup: bool = Field(False, description="True: [pause:1s] and the like, or SSML, in the text.")
    seed: int | None = Field(None, description="The same seed gives the same sound.")
    temperature: float | None = None
    cfg_weight: float | None = None
    exaggeration: float | None = None
    min_p: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    cfm_steps: int | None = None
    max_tokens: int | None = None

    def sampling(self) -> Sampling:
        """The sampling parameters that were sent.

        Raises:
            InputError: a value is out of range.
        """
        return chosen({name: getattr(self, name) for name in PARAMETERS})

    def asked(self) -> SpeechRequest:
        """What the client asks for."""
        voice = self.voice.id if isinstance(self.voice, VoiceObject) else self.voice
        sends = {(True, "sse"): EVENTS, (True, "audio"): STREAM, (False, "audio"): WHOLE}
        return SpeechRequest(
            text=self.input,
            model=self.model,
            voice=voice,
            sampling=self.sampling,
            language=self.language,
            markup=self.markup,
            format=self.response_format,
            speed=self.speed,
            send=sends.get((self.stream, self.stream_format), EVENTS),
            latency=CHUNK if self.split else LOW,
        )


def client_of(request: HttpRequest) -> str:
    """The address of a client."""
    return request.client.host if request.client else ""


def router(service: SpeechService) -> APIRouter:
    """The routes, without what stands before them: one of ``PREFIXES``."""
    routes = APIRouter()
    _speech_routes(routes, service)
    _model_routes(routes, service)
    _voice_routes(routes, service)
    return routes


def _speech_routes(routes: APIRouter, service: SpeechService) -> None:
    @routes.post("/audio/speech", response_class=Response, tags=["speech"])
    async def speech(body: SpeechBody, request: HttpRequest) -> Response:
        """Speak a text; the sound is sent while it is made."""
        return service.respond(client_of(request), body.asked())


def _model_routes(routes: APIRouter, service: SpeechService) -> None:
    started = int(time.time())

    def model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": started, "owned_by": OWNER}

    @routes.get("/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """The models that are served."""
        return {"object": "list", "data": [model(name) for name in service.engines.models]}

    @routes.get("/models/{name:path}", tags=["models"])
    async def one_model(name: str) -> dict[str, Any]:
        """A model; a name of another service is the first one, which would serve it."""
        return {**model(service.engines.known(name)), "id": name}

    @routes.get(AUDIO_MODELS, tags=["models"])
    async def audio_models() -> dict[str, Any]:
        """The models in the shape of Open WebUI."""
        return {"models": [{"id": name} for name in service.engines.models]}


def _voice_routes(routes: APIRouter, service: SpeechService) -> None:
    def spec_of(model: str | None) -> Any:
        return service.engines.spec(service.engines.known(model))

    async def in_thread(call: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(service.uploads, call, *arguments)

    @routes.get(VOICES, tags=["voices"])
    async def list_voices(model: str | None = None) -> dict[str, Any]:
        """The voices of a model."""
        names = await asyncio.to_thread(voices.voice_names, spec_of(model))
        return {"voices": [{"id": name, "name": name} for name in names]}

    @routes.post(VOICES, status_code=201, tags=["voices"])
    async def add(
        name: Annotated[str, Form()], file: Annotated[UploadFile, File()]
    ) -> dict[str, str]:
        """Save a recording as a voice."""
        shown = file.filename or "the recording"
        await in_thread(voices.add_voice, spec_of(None), name, shown, file.file)
        return {"id": name, "name": name}

    @routes.delete(VOICES + "/{name}", tags=["voices"])
    async def remove(name: str) -> dict[str, Any]:
        """Delete a saved voice."""
        try:
            await in_thread(voices.remove_voice, spec_of(None), name)
        except VoiceError as error:
            raise HTTPException(404, str(error)) from error
        return {"id": name, "deleted": True}
