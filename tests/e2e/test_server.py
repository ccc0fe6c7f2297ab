"""The server as a process, with the built-in model: whole files in every format, random calls.

pytest -m slow tests/e2e/test_server.py
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from helpers.decoding import FRAME, audio_of, count
from helpers.memory import resident
from helpers.serve_process import serving

from chatterbox_opt.audio.encoders import FORMATS

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
OPENINGS = ("Yes,", "We saw", "Please bring", "It takes about", "There were, as far as I know,")
TEXTS = [f"{opening} {number} of them." for opening, number in
         itertools.product(OPENINGS, range(1, 100, 10))]  # fmt: skip
KNOBS = {"seed": 3, "cfm_steps": 2, "max_tokens": 100}
SENT = ({"stream": True}, {"stream_format": "sse"}, {"stream": False})
AT_ONCE = 4  # fewer than there are decode slots: streams keep their low latency


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("voices"), "--max-characters", "2000") as one:
        yield one


@pytest.fixture
def address(started):
    return started[0]


def test_whole_files(address):
    assert len(set(TEXTS)) == 50
    with httpx.Client(base_url=address, timeout=600) as client:

        def sound(text: str, format_: str, sent: dict) -> bytes:
            body = {"input": text, "response_format": format_, **KNOBS, **sent}
            answer = client.post("/v1/audio/speech", json=body).raise_for_status()
            return audio_of(answer.content) if "stream_format" in sent else answer.content

        def wrong(text: str) -> list[tuple]:
            """The answers that are not as long as the samples that were made."""
            found = []
            for sent in SENT:
                made = len(sound(text, "pcm", sent)) // 2
                for format_ in FORMATS:
                    excess = count(sound(text, format_, sent), format_) - made
                    if not (made and abs(excess) <= FRAME.get(format_, 0)):
                        found.append((text, format_, sent, made, excess))
            return found

        with ThreadPoolExecutor(AT_ONCE) as threads:
            assert sum(threads.map(wrong, TEXTS), []) == []


def test_no_call_is_answered_with_a_failure(address, tmp_path):
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
    command += ["--checks", "not_a_server_error", "-n", "25", "--seed", "1"]
    # it leaves a folder in the directory in which it runs
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert httpx.get(f"{address}/health").json()["active"] == 0


def test_memory_is_flat(started):
    """Tiny texts, so that 5,000 of them take minutes."""
    root, pid = started

    def ask(client: httpx.Client, count: int) -> None:
        body = {"response_format": "mp3", "cfm_steps": 1, "max_tokens": 10}
        for number in range(count):
            asked = {"input": f"No {number % 10}.", **body}
            client.post("/v1/audio/speech", json=asked).raise_for_status()

    with httpx.Client(base_url=root, timeout=600) as client:
        ask(client, 300)
        before = resident(pid)
        ask(client, 5_000)
        assert resident(pid) - before < 50  # MiB
