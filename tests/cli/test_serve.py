"""The options of ``serve``, and its process: ready, answering, ended by a signal."""

from __future__ import annotations

import builtins
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.serve import command
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.server.settings import ServerSettings

HERE = ["--model", "pico", "--port", "0"]


@pytest.fixture
def settings(monkeypatch):
    """The settings that a command line means; nothing is served."""
    seen: list[ServerSettings] = []

    async def run(settings, *_):
        seen.append(settings)

    monkeypatch.setattr(command, "_run", run)
    monkeypatch.setattr(command, "listening", lambda host, port: socket.socketpair()[0])

    class Port:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def getsockname(self):
            return ("", 1)

    monkeypatch.setattr(command, "listening", lambda host, port: Port())

    def of(*arguments: str) -> ServerSettings:
        result = CliRunner().invoke(app, ["serve", *HERE, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen[-1]

    return of


def test_options_become_settings(settings, tmp_path):
    made = settings(
        "--also", "chatterbox", "--also", "pico", "--api-key", "k", "--voices", str(tmp_path),
        "--strict-voices", "--max-queue", "5", "--max-per-client", "2", "--max-characters", "9",
        "--idle-unload", "10m", "--no-warm-up", "--cors-origin", "https://a.example",
        "--dtype", "float32",
    )  # fmt: skip
    assert [spec.model for spec in made.engines] == ["pico", "chatterbox"]
    assert {spec.overrides["dtype"] for spec in made.engines} == {"float32"}
    assert {spec.store.saved_directory for spec in made.engines} == {tmp_path}
    assert made.api_key == "k" and made.strict_voices and not made.warm_up
    assert made.idle_seconds == 600 and made.cors_origins == ("https://a.example",)
    limits = made.limits
    assert (limits.requests, limits.requests_per_client, limits.characters) == (5, 2, 9)


def test_defaults_and_the_key_of_the_environment(settings, monkeypatch):
    made = settings()
    assert made == ServerSettings(engines=made.engines, hosts=made.hosts) and not made.api_key
    assert set(made.hosts) == {"localhost", "127.0.0.1", "::1", "host.docker.internal"}
    assert settings("--host", "0.0.0.0").hosts == ()
    assert "a.example" in settings("--allow-host", "a.example").hosts
    monkeypatch.setenv("CHATTERBOX_API_KEY", "sesame")
    assert settings().api_key == "sesame"
    monkeypatch.setenv("CHATTERBOX_API_KEY", " sesame\n")
    assert settings().api_key == "sesame", "as a file or a shell leaves it"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), (" 10m ", 600), ("1h", 3600)]
)
def test_durations(text, seconds):
    assert command.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "m", "-1m", "10 minutes", "1d", "nan", "1e3"])
def test_impossible_durations(text):
    with pytest.raises(InputError, match="no duration; use one such as"):
        command.seconds_of(text)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "nobody"], "nobody"),
        (["--also", "nobody"], "nobody"),
        (["--api-key", ""], "the API key is empty"),
        (["--api-key", " \n"], "the API key is empty"),
        (["--api-key", "schl\u00fcssel"], "use ASCII only"),
        (["--api-key", "a\nb"], "use ASCII only"),
        (["--idle-unload", "soon"], "is no duration"),
        (["--voices", __file__], "is not a directory"),
    ],
)
def test_wrong_options(arguments, reason):
    result = CliRunner().invoke(app, ["serve", *HERE, *arguments])
    assert isinstance(result.exception, InputError) and reason in str(result.exception)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    imported = builtins.__import__

    def without(name, *rest):
        if name == "fastapi":
            raise ImportError("no", name="fastapi")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"fastapi is not installed: pip install .*\[server\]"):
        command._check_installed()


@pytest.mark.enable_socket
def test_a_host_that_is_none():
    with pytest.raises(InputError, match="is no address of this machine"):
        command.listening("no.such.host.invalid", 0)


@pytest.mark.enable_socket
def test_a_port_that_is_in_use():
    with command.listening("127.0.0.1", 0) as one:
        with pytest.raises(OutputError, match="choose another: --port 0"):
            command.listening("127.0.0.1", one.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "warnings"),
    [
        ({}, 0), ({"host": "::1"}, 0), ({"host": "localhost"}, 0), ({"host": "0.0.0.0"}, 1),
        ({"host": "0.0.0.0", "api_key": "k"}, 0), ({"host": "::", "wyoming": 1}, 2),
        ({"host": "example.org", "api_key": "k", "wyoming": 1}, 1),
    ],
)  # fmt: skip
def test_an_address_that_others_can_reach_is_warned_about(options, warnings):
    class Reporter:
        lines: list[str] = []

        def warn(self, line: str) -> None:
            self.lines.append(line)

    reporter = Reporter()
    reporter.lines = []
    command._warn_if_open(reporter, command.ListenOptions(**options))
    assert len(reporter.lines) == warnings


@pytest.mark.enable_socket
def test_a_process_drains_when_it_is_asked_to_end(tmp_path):
    environment = {**os.environ, "CHATTERBOX_VOICES": str(tmp_path)}
    arguments = ["serve", *HERE, "--no-warm-up", "--drain", "60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "chatterbox_opt", *arguments],
        stderr=subprocess.PIPE, env=environment, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    address = process.stderr.readline().split()[0]
    body = json.dumps({"input": "Hello there.", "response_format": "pcm"}).encode()
    heard: list[bytes] = []

    def ask() -> None:
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/v1/audio/speech", body, kind)
        with urllib.request.urlopen(request) as answer:
            heard.append(answer.read())

    asking = threading.Thread(target=ask)
    asking.start()
    end = time.monotonic() + 60
    while json.load(urllib.request.urlopen(f"{address}/health", timeout=60))["active"] == 0:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    asking.join()
    assert len(heard[0]) > 10_000, "the request that was running got all of its sound"
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


@pytest.mark.slow
@pytest.mark.enable_socket
def test_two_processes_behind_one_port(tmp_path):
    environment = {**os.environ, "CHATTERBOX_VOICES": str(tmp_path)}
    arguments = ["serve", *HERE, "--no-warm-up", "--workers", "2", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "chatterbox_opt", *arguments],
        stderr=subprocess.PIPE, env=environment, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    address = process.stderr.readline().split()[0]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not tell a process's children")
    with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
        assert json.load(answer)["status"] == "ok"
    assert len(children.read_text().split()) == 2
    too_long = json.dumps({"input": "a" * 10_001}).encode()
    for _ in range(8):  # whichever process takes it; each connection is a new one
        asked = urllib.request.Request(
            f"{address}/v1/audio/speech", too_long, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError, match="422"):
            urllib.request.urlopen(asked, timeout=60)
    for _ in range(8):
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        assert 'chatterbox_requests_total{outcome="refused"} 8.0' in lines, "of both processes"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0 and process.stderr.read() == ""
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address}/health", timeout=10)
