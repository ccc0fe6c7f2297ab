"""Memory stays as it is over 5,000 requests: the server with a stand-in, and with a tiny model."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path

import pytest
from helpers.http_server import FakeServedEngine, running, settings_of
from helpers.memory import resident

from chatterbox_opt.audio.encoders import FORMATS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc"),
]
WARM, REQUESTS, GROWTH = 500, 5_000, 50  # MiB
SENT = (
    {}, {"stream": False}, {"stream_format": "sse"}, {"speed": 1.5}, {"voice": "nobody"},
    {"input": "..."}, {"temperature": 99},
)  # fmt: skip


class ForgetfulEngine(FakeServedEngine):
    """Keeps no handles, which would grow by themselves."""

    def submit(self, request, timeout):
        self.handles.clear()
        return super().submit(request, timeout)


@pytest.mark.parametrize("is_real", [False, True])
def test_memory_is_flat(tmp_path, tiny, is_real):
    settings = settings_of(tmp_path, str(tiny) if is_real else "pico")
    load = None if is_real else (lambda _: ForgetfulEngine())
    kinds = itertools.cycle(itertools.product(SENT, FORMATS))
    with running(settings, load) as server, server.client() as client:

        def ask(count: int) -> None:
            for _ in range(count):
                more, format_ = next(kinds)
                body = {"input": "Hi.", "max_tokens": 5, "cfm_steps": 1, "response_format": format_}
                answer = client.post("/v1/audio/speech", json=body | more)
                assert answer.status_code in (200, 422), answer.text
            gc.collect()

        ask(WARM)
        before = resident()
        ask(REQUESTS)
        assert resident() - before < GROWTH
