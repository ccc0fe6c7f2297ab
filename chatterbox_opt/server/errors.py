"""Errors as answers: status codes, and JSON in OpenAI's shape.

Responsible for what a client is told; never a path of the disk. Not responsible for what goes wrong
(chatterbox_opt/errors.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from chatterbox_opt.errors import (
    ChatterboxOptError,
    InputError,
    QueueFullError,
    TextError,
    VoiceError,
)
from chatterbox_opt.utils.printable import message_line

log = logging.getLogger(__name__)
NOT_FOUND = 404
INVALID, UNPROCESSABLE, BUSY, FAILED = "invalid_request_error", 422, 429, 500
RETRY_AFTER = 2  # seconds


class UnknownVoiceError(VoiceError):
    """There is no voice of this name."""


def error_body(message: str, kind: str = INVALID, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def error_answer(error: ChatterboxOptError, names: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """The status and body for an error of a request.

    Args:
        names: what stands for a path in the error's message.
    """
    message = message_line(str(error))
    for path, name in names.items():
        message = message.replace(path, name)
    if isinstance(error, QueueFullError):
        return BUSY, error_body(message, "rate_limit_error")
    if isinstance(error, UnknownVoiceError):
        return NOT_FOUND, error_body(message, param="voice")
    if isinstance(error, InputError):
        param = {TextError: "input", VoiceError: "voice"}.get(type(error))
        return UNPROCESSABLE, error_body(message, param=param or _first_word(message))
    log.error("a request failed: %s", error)
    return FAILED, error_body("the synthesis failed; the server's log says why", "server_error")


def _first_word(message: str) -> str | None:
    """The parameter of a message such as "temperature is 9; give ..."."""
    word, _, rest = message.partition(" ")
    return word if rest.startswith("is ") and word.isidentifier() else None


def error_response(error: ChatterboxOptError, names: Mapping[str, str] = {}) -> JSONResponse:
    """The answer to a request that has failed before there was sound."""
    status, body = error_answer(error, names)
    headers = {"Retry-After": str(RETRY_AFTER)} if status == BUSY else None
    return JSONResponse(body, status, headers)


async def on_error(_: HttpRequest, error: Exception) -> JSONResponse:
    """Handle a ChatterboxOptError of a route."""
    assert isinstance(error, ChatterboxOptError)
    return error_response(error)


async def on_validation_error(_: HttpRequest, error: Exception) -> JSONResponse:
    """Handle a body or query that is not as the route declares it: 422, with the first field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"][1:]]
    field = ".".join(where)
    message = message_line(f"{field}: {first['msg']}" if field else str(first["msg"]))
    return JSONResponse(error_body(message, param=field or None), UNPROCESSABLE)


async def on_http_error(_: HttpRequest, error: Exception) -> JSONResponse:
    """Handle a wrong path, a wrong method, a body that cannot be parsed."""
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(str(error.detail)), error.status_code, error.headers)
