"""A server whose disk or memory runs out: with a real engine."""

from __future__ import annotations

import errno
import gc
import io
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import soundfile
import torch
from helpers.common import SAMPLE
from helpers.http_server import FakeServedEngine, running, settings_of

from chatterbox_opt.engine.rendering.hops import HopGroup

SPEECH, VOICES = "/v1/audio/speech", "/v1/audio/voices"
KNOBS = {"response_format": "pcm", "seed": 3, "cfm_steps": 1}
POISON = "Poison."


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    with running(settings_of(tmp_path_factory.mktemp("server"), str(tiny))) as one:
        yield one


def ask(server, text: str, **more):
    with server.client() as client:
        return client.post(SPEECH, json={"input": text, "max_tokens": 20, **KNOBS, **more})


def prompt_fails(monkeypatch, engine, error):
    """T3 cannot take in the text of one request."""
    prompt = engine.pipeline.decoder._prompt

    def fails(sequence):
        if sequence.chunk.text == POISON:
            raise error
        return prompt(sequence)

    monkeypatch.setattr(engine.pipeline.decoder, "_prompt", fails)


def flow_fails(monkeypatch, _, error):
    """The flow cannot render the sound of one request, nor a group that it is in."""
    flow = HopGroup.flow

    def fails(self, *args):
        if any(sequence.chunk.text == POISON for sequence in self.sequences):
            raise error
        return flow(self, *args)

    monkeypatch.setattr(HopGroup, "flow", fails)


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (prompt_fails, MemoryError()),
        (flow_fails, torch.OutOfMemoryError("no memory")),
        pytest.param(prompt_fails, torch.OutOfMemoryError("no memory"), marks=pytest.mark.slow),
        pytest.param(flow_fails, MemoryError(), marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_out_of_memory_in_one_request(server, monkeypatch, fails, error):
    texts = [f"Number {number}." for number in range(4)]
    alone = [ask(server, text).content for text in texts]
    fails(monkeypatch, server.engines[0], error)
    with ThreadPoolExecutor(5) as threads:
        failed, *others = threads.map(lambda text: ask(server, text), [POISON, *texts])
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
    assert [answer.content for answer in others] == alone
    monkeypatch.undo()
    assert ask(server, POISON).status_code == 200


def large_recording() -> bytes:
    """Too large to be kept in memory while it comes: 1 MiB."""
    wave, rate = soundfile.read(SAMPLE)
    file = io.BytesIO()
    soundfile.write(file, wave, rate, "DOUBLE", format="WAV")
    assert len(file.getvalue()) > 1 << 20
    return file.getvalue()


def disk_is_full(*_args, **_more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def copy_stops(source, target):
    target.write_bytes(source.read_bytes()[:1000])
    disk_is_full()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("place", "name", "fails"),
    [
        (tempfile.SpooledTemporaryFile, "rollover", disk_is_full),  # while the form comes
        pytest.param(tempfile, "TemporaryDirectory", disk_is_full, marks=pytest.mark.slow),
        # while it is kept to be checked
        pytest.param(shutil, "copyfileobj", disk_is_full, marks=pytest.mark.slow),
        (shutil, "copyfile", copy_stops),  # among the voices
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_full_disk(tmp_path, monkeypatch, place, name, fails):
    files = {"file": ("anna.wav", large_recording())}
    with running(settings_of(tmp_path), lambda _: FakeServedEngine()) as server:
        with server.client() as client:
            with monkeypatch.context() as patched:
                patched.setattr(place, name, fails)
                refused = client.post(VOICES, data={"name": "anna"}, files=files)
            assert refused.status_code == 507
            error = refused.json()["error"]
            assert error["type"] == "server_error" and "No space left" in error["message"]
            assert str(tmp_path) not in refused.text and "/tmp" not in refused.text
            saved = tmp_path / "saved"
            assert not saved.exists() or list(saved.iterdir()) == []
            assert client.post(SPEECH, json={"input": "a", **KNOBS}).status_code == 200
            assert client.post(VOICES, data={"name": "anna"}, files=files).status_code == 201
    gc.collect()  # the form's file, which Starlette leaves to its destructor then
