"""Errors as answers: status codes, and JSON in OpenAI's shape.

Responsible for what a client is told; never a path of the disk. Not responsible for what goes wrong
(chatterbox_opt/errors.py).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from chatterbox_opt.engine.sequence import REQUEST_ERRORS
from chatterbox_opt.errors import (
    ChatterboxOptError,
    DeviceError,
    InputError,
    OutputError,
    QueueFullError,
    TextError,
    VoiceError,
    first_line,
)
from chatterbox_opt.utils.printable import message_line

log = logging.getLogger(__name__)
NOT_FOUND = 404
INVALID, SERVER = "invalid_request_error", "server_error"
UNPROCESSABLE, BUSY, FAILED, FULL = 422, 429, 500, 507
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RETRY_AFTER = 2  # seconds


class UnknownVoiceError(VoiceError):
    """There is no voice of this name."""


class StorageError(OutputError):
    """What a client has sent could not be stored.

    Attributes:
        status: of the answer: 507 for want of room, which a client can wait for.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"what was sent could not be stored ({error.strerror}): check the disk")
        self.status = FULL if error.errno in NO_ROOM else FAILED


@contextmanager
def engine_errors() -> Iterator[None]:
    """Every error that fails one request of an engine as ours: memory and device too.

    Raises:
        ChatterboxOptError: in place of another one.
    """
    try:
        yield
    except ChatterboxOptError:
        raise
    except REQUEST_ERRORS as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DeviceError(f"the engine failed ({reason}): try again") from error


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
    if isinstance(error, StorageError):
        return error.status, error_body(message, SERVER)
    return FAILED, error_body("the synthesis failed; the server's log says why", SERVER)


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
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in NO_ROOM:  # of a form, which is kept on disk
        return error_response(StorageError(cause))
    return JSONResponse(error_body(str(error.detail)), error.status_code, error.headers)


async def on_failure(_: HttpRequest, error: Exception) -> JSONResponse:
    """Handle a bug: the log has it, the client is told no more than that."""
    return JSONResponse(error_body(f"a {type(error).__name__} in the server", SERVER), FAILED)
