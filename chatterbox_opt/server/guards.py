"""What a request must pass before a route sees it: its origin, the key, the size, the time.

Responsible for these checks, as ASGI middleware. Not responsible for what is in a body.
"""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Collection
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from chatterbox_opt.server.errors import error_body
from chatterbox_opt.server.settings import Limits
from chatterbox_opt.server.timeouts import within

HOST = re.compile(r"\[?([^]]*?)\]?(?::\d*)?")  # a name or an address, with a port or without
CLOSE = {"Connection": "close"}  # the rest of the body is not read


class Origins:
    """Refuses what pages of other origins ask for, which a browser sends without a question.

    A browser tells whose page asks: by ``Sec-Fetch-Site``, by ``Origin``, or at least by
    ``Referer``. Other clients send none of them, and pass. Links to ``pages`` pass too.

    A name that an attacker's page has led to this machine ("DNS rebinding") makes that page one of
    the server's own origin; hence the names by which the server may be called.

    Args:
        allowed: origins such as "https://example.org"; "*": all.
        hosts: names by which the server may be called; empty: all.
        pages: paths of the server's pages.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed: Collection[str],
        hosts: Collection[str],
        pages: Collection[str],
    ) -> None:
        self._app, self._pages = app, pages
        self._allowed = {origin.lower().rstrip("/") for origin in allowed}
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self._refusal(scope) if scope["type"] == "http" else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            response = JSONResponse(error_body(reason, "permission_error"), 403, CLOSE)
            await response(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if host and self._hosts and _name(host) not in self._hosts:
            return "this server has another name: start it with --allow-host NAME"
        if "*" in self._allowed or self._is_own(headers, host):
            return None
        is_link = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if is_link and scope["path"] in self._pages:
            return None
        return "pages of other origins may not call: start the server with --cors-origin ORIGIN"

    def _is_own(self, headers: Headers, host: str) -> bool:
        """Whether a request comes from no page, from one of this server, or from an allowed one."""
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin", "").lower() or _origin(headers.get("referer", ""))
        if site in ("same-origin", "none") or origin in self._allowed:
            return True
        if not origin:
            return site is None
        return _without_port(origin.partition("://")[2]) == _without_port(host)


def _name(host: str) -> str:
    match = HOST.fullmatch(host)
    return match[1] if match else host


def _origin(address: str) -> str:
    """The origin of a page's address, or ""."""
    scheme, separator, rest = address.lower().partition("://")
    return scheme + separator + re.split("[/?#]", rest)[0] if separator else ""


def _without_port(host: str) -> str:
    """A host without the port that its scheme has anyway."""
    return host.lower().removesuffix(":80").removesuffix(":443")


class ApiKey:
    """Refuses requests without the key; preflights and GET of open paths pass.

    Args:
        key: as ``ServerSettings`` has it.
        open_paths: that can be read without it.
    """

    def __init__(self, app: ASGIApp, key: str, open_paths: Collection[str]) -> None:
        self._app, self._key, self._open = app, key.encode(), open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._passes(scope):
            await self._app(scope, receive, send)
            return
        body = error_body("wrong or missing API key", "authentication_error")
        response = JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        await response(scope, receive, send)

    def _passes(self, scope: Scope) -> bool:
        method, path = scope["method"], scope["path"]
        if method == "OPTIONS" or (method in ("GET", "HEAD") and path in self._open):
            return True
        kind, _, sent = Headers(scope=scope).get("authorization", "").partition(" ")
        is_bearer = kind.lower() == "bearer"
        return hmac.compare_digest(sent.strip().encode(), self._key) and is_bearer


class BodyLimits:
    """Bounds the size of bodies and the time that they take.

    Args:
        uploads: paths to which recordings are posted.
    """

    def __init__(self, app: ASGIApp, limits: Limits, uploads: Collection[str]) -> None:
        self._app, self._limits, self._uploads = app, limits, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = scope["path"] in self._uploads and scope["method"] == "POST"
        limit = self._limits.upload if is_upload else self._limits.body
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            refused = _too_large(limit)
            response = JSONResponse(error_body(refused.detail), refused.status_code, CLOSE)
            await response(scope, receive, send)
        else:
            bounded = _BoundedBody(receive, limit, self._limits.body_seconds)
            await self._app(scope, bounded, send)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body has more than {limit:,} bytes", CLOSE)


class _BoundedBody:
    """Receives the messages of one request.

    Its errors are HTTPExceptions, the only ones that FastAPI passes on from a body.
    """

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive, self._limit, self._seconds = receive, limit, seconds
        self._size = 0
        self._complete = False
        self._end = asyncio.get_running_loop().time() + seconds

    async def __call__(self) -> Any:
        if self._complete:  # what follows is the end of the connection, which may be far
            return await self._receive()
        left = self._end - asyncio.get_running_loop().time()
        try:
            message = await within(left, self._receive())
        except asyncio.TimeoutError as error:
            reason = f"the body did not come within {self._seconds:g} s"
            raise HTTPException(408, reason, CLOSE) from error
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._size > self._limit:
                raise _too_large(self._limit)
        return message
