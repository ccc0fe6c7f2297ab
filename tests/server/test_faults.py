"""Bad days of a server: clients that go, stall or send rubbish; an engine that fails; a full queue."""

from __future__ import annotations

import json
import socket
import threading
import time

import httpx
import pytest
from helpers.http_server import FakeServedEngine, running, settings_of

from chatterbox_opt.errors import WeightsError
from chatterbox_opt.server.settings import Limits

SPEECH = "/v1/audio/speech"


@pytest.fixture(scope="module")
def engine():
    return FakeServedEngine()


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    limits = Limits(
        characters=200, requests=3, requests_per_client=3, body=4_000, upload=200_000,
        body_seconds=0.5, buffered=200_000, stalled_seconds=0.5,
    )  # fmt: skip
    with running(
        settings_of(tmp_path_factory.mktemp("server"), limits=limits), lambda _: engine
    ) as one:
        yield one


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


def body(text: str, **more) -> dict:
    return {"input": text, "response_format": "pcm", **more}


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def raw(server, request: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server.socket)
    connection.sendall(request)
    return connection


def speech_request(text: str, **more) -> bytes:
    content = json.dumps(body(text, **more)).encode()
    head = f"POST {SPEECH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_an_error_before_there_is_sound(client):
    answer = client.post(SPEECH, json=body("fail=0"))
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text, "no path and no cause in an answer"


def test_an_error_after_there_was_sound_breaks_the_transfer(client):
    with (
        pytest.raises(httpx.RemoteProtocolError),
        client.stream("POST", SPEECH, json=body("fail=1")) as answer,
    ):
        assert answer.status_code == 200
        assert sum(len(part) for part in answer.iter_bytes()) > 0
    events = (
        client.post(SPEECH, json=body("fail=1", stream_format="sse")).text.strip().split("\n\n")
    )
    assert [json.loads(event[6:])["type"] for event in events] == ["speech.audio.delta", "error"]
    assert client.post(SPEECH, json=body("fail=1", stream=False)).status_code == 500
    assert client.post(SPEECH, json=body("well")).status_code == 200, "the others are not hurt"


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream_format": "sse"}])
def test_a_client_that_goes_frees_its_slot(server, engine, more):
    name = f"gone{len(engine.handles)}"
    connection = raw(server, speech_request(f"{name} pieces=1000000", **more))
    until(lambda: any(name in one.request.text for one in engine.handles))
    connection.close()
    handle = next(one for one in engine.handles if name in one.request.text)
    until(lambda: handle.cancelled and server.service.admission.active == 0)


@pytest.mark.parametrize("more", [{}, {"stream": False}, {"stream_format": "sse"}])
def test_a_client_that_goes_before_its_first_sound_makes_room(server, client, engine, more):
    gone = server.metric('chatterbox_requests_total{outcome="gone"}')
    before = len(engine.handles)
    waiting = [raw(server, speech_request("silent", **more)) for _ in range(3)]
    until(lambda: len(engine.handles) == before + 3)
    assert client.post(SPEECH, json=body("one more")).status_code == 429
    for connection in waiting:
        connection.close()
    until(lambda: server.service.admission.active == 0, seconds=2)
    assert all(handle.cancelled for handle in engine.handles[before:])
    assert client.post(SPEECH, json=body("one more")).status_code == 200
    assert server.metric('chatterbox_requests_total{outcome="gone"}') == gone + 3


def test_a_client_that_goes_while_its_request_is_submitted(tmp_path):
    engine, submitting, go_on = FakeServedEngine(), threading.Event(), threading.Event()
    submit = engine.submit

    def slow_submit(request, timeout):
        submitting.set()
        assert go_on.wait(10)
        return submit(request, timeout)

    engine.submit = slow_submit
    with running(settings_of(tmp_path), lambda _: engine) as server:
        connection = raw(server, speech_request("silent"))
        assert submitting.wait(10)
        connection.close()
        until(lambda: server.service.admission.active == 0, seconds=2)
        go_on.set()
        until(lambda: engine.handles and engine.handles[0].cancelled, seconds=2)


def test_slow_submissions_delay_no_stream_that_plays(tmp_path):
    """More of them than asyncio has threads of its own."""
    engine, go_on = FakeServedEngine(), threading.Event()
    submit = engine.submit

    def submit_or_wait(request, timeout):
        if "new voice" in request.text:
            assert go_on.wait(10)
        return submit(request, timeout)

    engine.submit = submit_or_wait
    with running(settings_of(tmp_path), lambda _: engine) as server, server.client() as client:
        waiting = [raw(server, speech_request("new voice")) for _ in range(40)]
        until(lambda: server.service.admission.active == 40)
        try:
            answer = client.post(SPEECH, json=body("plays pieces=5"), timeout=2)
            assert answer.status_code == 200 and len(answer.content) == 5 * 4_800
        finally:
            go_on.set()
        for connection in waiting:
            connection.close()


def test_a_client_that_does_not_read_is_cancelled(server, engine):
    connection = raw(server, speech_request("slow pieces=1000000"))
    until(lambda: any("slow" in one.request.text for one in engine.handles))
    handle = next(one for one in engine.handles if "slow" in one.request.text)
    until(lambda: handle.cancelled and server.service.admission.active == 0)
    # what waited was bounded: 200,000 bytes, and what the kernel holds
    assert handle.given * 4_800 < 2_000_000
    connection.close()


def test_a_full_queue(server, client, engine):
    waiting = [raw(server, speech_request("full pieces=1000000")) for _ in range(3)]
    until(lambda: sum("full" in one.request.text for one in engine.handles) == 3)
    assert server.service.admission.active == 3
    latencies = [one.request.latency for one in engine.handles if "full" in one.request.text]
    assert sorted(latencies) == ["chunk", "low", "low"], "two slots: the third gets whole chunks"
    refused = client.post(SPEECH, json=body("one more"))
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert client.get("/health").json()["active"] == 3, "it answers while it is busy"
    for connection in waiting:
        connection.close()
    until(lambda: server.service.admission.active == 0)
    assert client.post(SPEECH, json=body("one more")).status_code == 200


def test_many_connects_and_drops(server, client):
    for number in range(1_000):
        raw(server, speech_request("drop pieces=3") if number % 2 else b"POST /v1/au").close()
    # some are still being read: they may fill the queue for a moment
    until(lambda: client.post(SPEECH, json=body("still there")).status_code == 200)
    until(lambda: server.service.admission.active == 0)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"input": "\xff"}', None),
        (b'{"input": 1}', "input"),
        (b'{"input": null}', "input"),
        (b"{}", "input"),
        (b'{"input": "a", "speed": 9}', "speed"),
        (b'{"input": "a", "speed": NaN}', "speed"),
        (b'{"input": "a", "response_format": "ape"}', "response_format"),
        (b'{"input": "a", "seed": -1}', "seed"),
        (b'{"input": "a", "seed": 1.5}', "seed"),
        (b'{"input": "a", "temperature": 1e999}', "temperature"),
        (b'{"input": "a", "language": "tlh"}', None),
        (b'{"input": "' + b"a" * 201 + b'"}', "input"),
        (b"[" * 3_000, None),
    ],
)
def test_a_wrong_body_is_refused_with_its_field(client, content, param):
    answer = client.post(SPEECH, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param:
        assert error["param"] == param


def test_what_is_unknown_is_ignored(client):
    sent = body(
        "well", instructions="be kind", model="gpt-4o-mini-tts", voice={"id": "alloy"}, new=[1]
    )
    answer = client.post(SPEECH, json=sent)
    assert answer.status_code == 200 and "no such voice" in answer.headers["warning"]
    assert answer.headers["x-seed"] == "7" and len(answer.content) == 2 * 4_800


def test_a_large_body(server, client):
    assert client.post(SPEECH, json=body("a", instructions="x" * 5_000)).status_code == 413

    def chunks():
        for _ in range(100):
            yield b"x" * 1_000

    answer = client.post(SPEECH, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    files = {"file": ("a.wav", b"x" * 300_000)}
    assert client.post("/v1/audio/voices", data={"name": "a"}, files=files).status_code == 413
    assert client.post(SPEECH, json=body("still there")).status_code == 200


def test_a_body_that_does_not_come(server):
    connection = raw(server, speech_request("never")[:-5])
    connection.settimeout(10)
    assert b" 408 " in connection.recv(1_000)
    connection.close()


def test_paths_and_methods(client):
    for method, path, status in (
        ("GET", "/nothing", 404), ("GET", SPEECH, 405), ("DELETE", "/v1/audio/voices/nobody", 404),
        ("DELETE", "/v1/audio/voices/ada", 422), ("GET", "/v1/models/tts-1", 200),
        ("GET", "/tts-stream", 422), ("GET", "/", 200), ("GET", "/metrics", 200),
    ):  # fmt: skip
        answer = client.request(method, path)
        assert answer.status_code == status, (method, path)
        if status >= 400:
            assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("../anna", b"", "not a valid voice name"),
        ("a" * 65, b"", "not a valid voice name"),
        ("ada", b"", "there is a voice 'ada'"),
        ("Default", b"", "there is a voice 'Default'"),
        ("anna", b"", "is empty"),
        ("anna", b"no sound" * 100, "cannot be read as audio"),
    ],
)
def test_an_upload_that_is_refused(client, name, file, reason):
    answer = client.post(
        "/v1/audio/voices", data={"name": name}, files={"file": ("../a.wav", file)}
    )
    assert answer.status_code == 422 and reason in answer.json()["error"]["message"]
    assert "/tmp" not in answer.text and "server" not in answer.text


@pytest.mark.parametrize("prefix", ["/v1", ""])
def test_every_call_is_there_with_and_without_its_prefix(client, prefix):
    for method, path, status in (
        ("GET", "/models", 200), ("GET", "/models/tts-1", 200), ("GET", "/audio/models", 200),
        ("GET", "/audio/voices", 200), ("DELETE", "/audio/voices/ada", 422),
        ("POST", "/audio/voices", 422), ("POST", "/audio/speech", 422),
    ):  # fmt: skip
        assert client.request(method, prefix + path).status_code == status, path
    recording = {"file": ("a.wav", b"x" * 100_000)}
    refused = client.post(f"{prefix}/audio/voices", data={"name": "no/name"}, files=recording)
    assert refused.status_code == 422, "the bound of uploads, not that of other bodies"


def test_a_form_that_is_no_form(client):
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/audio/voices", content=b"--y\r\nrubbish", headers=kind)
    assert answer.status_code in (400, 422)


def test_a_key_is_wanted(tmp_path):
    with running(settings_of(tmp_path, api_key="sesame"), lambda _: FakeServedEngine()) as server:
        with server.client() as client:
            for header in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic sesame"}):
                assert client.get("/v1/models", headers=header).status_code == 401
                assert client.post(SPEECH, json=body("a"), headers=header).status_code == 401
            for path in ("/", "/health", "/v1/audio/voices", "/v1/audio/models"):
                assert client.get(path).status_code == 200
            assert client.post("/v1/audio/voices").status_code == 401
            right = {"Authorization": "Bearer sesame"}
            assert client.post(SPEECH, json=body("a"), headers=right).status_code == 200


def test_strict_voices(tmp_path):
    settings = settings_of(tmp_path, strict_voices=True)
    with running(settings, lambda _: FakeServedEngine()) as server, server.client() as client:
        refused = client.post(SPEECH, json=body("a", voice="alloy"))
        assert refused.status_code == 404 and refused.json()["error"]["param"] == "voice"
        for voice in ("ada", "Ada", "ada.wav", "default", None, {"id": "ada"}):
            assert client.post(SPEECH, json=body("a", voice=voice)).status_code == 200


def test_an_idle_engine_is_closed_and_loaded_again(tmp_path):
    settings = settings_of(tmp_path, idle_seconds=0.2)
    with running(settings, lambda _: FakeServedEngine()) as server, server.client() as client:
        assert client.post(SPEECH, json=body("a")).status_code == 200
        until(lambda: server.engines[0].closed)
        assert client.get("/health").json()["loaded"] == {"pico": False}
        assert client.post(SPEECH, json=body("a")).status_code == 200
        assert len(server.engines) == 2


def test_a_model_that_cannot_be_loaded_is_tried_again(tmp_path):
    engines = [WeightsError("/secret: damaged"), FakeServedEngine()]

    def load(_):
        if isinstance(one := engines.pop(0), Exception):
            raise one
        return one

    with running(settings_of(tmp_path), load) as server, server.client() as client:
        failed = client.post(SPEECH, json=body("a"))
        assert failed.status_code == 500 and "secret" not in failed.text
        assert client.post(SPEECH, json=body("a")).status_code == 200


def test_other_origins(tmp_path):
    allowed = settings_of(tmp_path, cors_origins=("https://a.example",))
    for settings, origin in ((settings_of(tmp_path), None), (allowed, "https://a.example")):
        with running(settings, lambda _: FakeServedEngine()) as server, server.client() as client:
            answer = client.get("/v1/models", headers={"Origin": "https://a.example"})
            assert answer.headers.get("access-control-allow-origin") == origin


EVIL, HERE = "http://evil.example", "http://localhost:8004"


@pytest.mark.parametrize(
    ("sent", "is_refused"),
    [
        ({}, False),
        ({"Origin": HERE}, False),
        ({"Origin": "https://a.example"}, False),
        ({"Host": "[::1]:8004"}, False),
        ({"Host": "Localhost"}, False),
        ({"Referer": f"{HERE}/page?a"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxy.example"}, False),
        ({"Origin": EVIL}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://localhost:3000"}, True),
        ({"Referer": f"{EVIL}/page"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ({"Origin": f"{EVIL}:8004", "Host": "evil.example:8004"}, True),
        ({"Host": "evil.example:8004", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Host": "localhost.evil.example"}, True),
    ],
)
def test_pages_of_other_origins_are_refused(guarded, sent, is_refused):
    sent = {"Host": "localhost:8004", **sent}
    for path in ("/v1/audio/voices", "/audio/voices"):
        answer = guarded.post(path, data={"name": "no/name"}, files={"file": b"a"}, headers=sent)
        assert answer.status_code == (403 if is_refused else 422), answer.text
    assert guarded.get("/tts-stream", headers=sent).status_code == (403 if is_refused else 422)


def test_another_site_may_link_to_the_page(guarded):
    sent = {"Host": "localhost", "Sec-Fetch-Site": "cross-site", "Referer": f"{EVIL}/"}
    assert guarded.get("/", headers={**sent, "Sec-Fetch-Mode": "navigate"}).status_code == 200
    assert guarded.get("/", headers={**sent, "Sec-Fetch-Mode": "no-cors"}).status_code == 403


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    settings = settings_of(
        tmp_path_factory.mktemp("guarded"),
        cors_origins=("https://a.example",),
        hosts=("localhost", "127.0.0.1", "::1"),
    )
    with running(settings, lambda _: FakeServedEngine()) as server, server.client() as client:
        yield client


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(server, client):
    import gc

    from chatterbox_opt.server.speech import SpeechStream

    for _ in range(50):
        assert client.post(SPEECH, json=body("a")).status_code == 200
    gc.collect()
    assert sum(type(one) is SpeechStream for one in gc.get_objects()) <= 1
    assert server.metric('chatterbox_requests_total{outcome="done"}') >= 50
