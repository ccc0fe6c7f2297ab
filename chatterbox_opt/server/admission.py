"""Who may come in: how many requests at once, of all clients and of each.

Responsible for the counts. Not responsible for the engine's own queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from chatterbox_opt.errors import QueueFullError
from chatterbox_opt.server.settings import Limits


class Admission:
    """Counts the requests that are queued or being synthesized; of one asyncio loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_client: Counter[str] = Counter()

    @property
    def active(self) -> int:
        """Requests that are in."""
        return self._by_client.total()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Count a request of a client for the length of the block.

        Raises:
            QueueFullError: too many are in already.
        """
        if self.active >= self._limits.requests:
            raise QueueFullError(
                f"{self.active} requests are queued, which is the limit: try again later"
            )
        if self._by_client[client] >= self._limits.requests_per_client:
            raise QueueFullError(
                f"{self._by_client[client]} requests of this client are queued, which is the "
                "limit: wait for one of them"
            )
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            self._by_client += Counter()  # drops clients without requests
