"""The calls of SillyTavern's "Chatterbox" provider (its pull request 4145).

Responsible for its field names. Not responsible for synthesis (service.py).
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from chatterbox_opt.audio.tempo import MAX_SPEED, MIN_SPEED
from chatterbox_opt.sampling import Sampling, chosen
from chatterbox_opt.server import voices
from chatterbox_opt.server.clients.openai import client_of
from chatterbox_opt.server.service import STREAM, WHOLE, SpeechRequest, SpeechService

DRAW_SEED = (0, -1)  # what the provider sends for "any"


class Speech(BaseModel):
    """What the provider sends; ``split_text`` and ``chunk_size`` are not needed here."""

    model_config = ConfigDict(extra="ignore")

    text: str
    voice_mode: Literal["predefined", "clone"] = "predefined"
    predefined_voice_id: str | None = None
    reference_audio_filename: str | None = None
    temperature: float | None = None
    exaggeration: float | None = None
    cfg_weight: float | None = None
    seed: int | None = None
    speed_factor: float = Field(1.0, ge=MIN_SPEED, le=MAX_SPEED)
    language: str | None = None
    output_format: Literal["mp3", "opus", "wav"] = "wav"

    def sampling(self) -> Sampling:
        """The sampling parameters that were sent.

        Raises:
            InputError: a value is out of range.
        """
        return chosen(
            {
                "temperature": self.temperature,
                "exaggeration": self.exaggeration,
                "cfg_weight": self.cfg_weight,
                "seed": None if self.seed in DRAW_SEED else self.seed,
            }
        )

    def asked(self, send: str) -> SpeechRequest:
        """What the client asks for."""
        is_clone = self.voice_mode == "clone"
        return SpeechRequest(
            text=self.text,
            voice=self.reference_audio_filename if is_clone else self.predefined_voice_id,
            sampling=self.sampling,
            language=self.language,
            format=self.output_format,
            speed=self.speed_factor,
            send=send,
        )


def router(service: SpeechService) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["SillyTavern"])

    async def names() -> list[str]:
        spec = service.engines.spec(service.engines.models[0])
        return list(await asyncio.to_thread(voices.voice_names, spec))

    @routes.get("/get_predefined_voices")
    async def predefined() -> list[dict[str, str]]:
        """The voices."""
        return [{"display_name": name, "filename": name} for name in await names()]

    @routes.get("/get_reference_files")
    async def references() -> list[str]:
        """The voices once more: here all can be cloned."""
        return await names()

    @routes.post("/tts", response_class=Response)
    async def speak(body: Speech, request: HttpRequest) -> Response:
        """Speak a text; the answer is a complete file."""
        return service.respond(client_of(request), body.asked(WHOLE))

    @routes.get("/tts-stream", response_class=Response)
    async def stream(query: Annotated[Speech, Query()], request: HttpRequest) -> Response:
        """Speak a text while it is played: the address of an audio element."""
        return service.respond(client_of(request), query.asked(STREAM))

    return routes
