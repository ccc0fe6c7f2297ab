"""How long a coroutine is waited for: within a time, or to its end.

Responsible for what ``asyncio.wait_for`` does, but for one fault of it before Python 3.12: it drops
a cancellation that comes when the coroutine has just ended, and its caller goes on for ever; and
for work that a cancellation must not leave behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Value = TypeVar("Value")


async def within(seconds: float, work: Awaitable[Value]) -> Value:
    """The result of ``work``.

    Raises:
        asyncio.TimeoutError: after ``seconds``; ``work`` is cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=max(0.0, seconds))
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()  # harmless when it is done


async def to_its_end(work: Awaitable[Value]) -> Value:
    """The result of ``work``; a cancellation takes effect when that has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it
        raise cancelled
    return task.result()
