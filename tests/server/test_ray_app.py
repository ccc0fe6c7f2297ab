"""The server as a Ray Serve application: its arguments, and two replicas on this machine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from pydantic import ValidationError

from chatterbox_opt.errors import InputError
from chatterbox_opt.server.ray_app import Arguments
from chatterbox_opt.server.settings import ServerSettings

HAS_SERVE = importlib.util.find_spec("ray") and importlib.util.find_spec("ray.serve")
needs_ray = pytest.mark.skipif(not HAS_SERVE, reason='not installed: pip install "ray[serve]"')
# a cluster and the application on it, until stdin is closed
PROGRAM = """
import sys, ray
from ray import serve
from chatterbox_opt.server.ray_app import application
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": 0})
serve.run(application(dict(one.split("=") for one in sys.argv[1:])))
from ray.serve.api import _get_global_client
print(_get_global_client().get_serve_details()["http_options"]["port"], flush=True)
sys.stdin.read()
serve.shutdown()
"""


def test_arguments_of_a_command_line():
    settings = Arguments(model="pico", requests="3", strict_voices="true", device="cpu").settings()
    (spec,) = settings.engines
    assert (spec.model, spec.device) == ("pico", "cpu") and settings.strict_voices
    assert settings.limits.requests == settings.limits.requests_per_client == 3
    assert Arguments(model="pico").settings() == ServerSettings(engines=(settings_spec(),))


def settings_spec():
    from chatterbox_opt.engine.spec import EngineSpec

    return EngineSpec(model="pico")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"modle": "pico"}, ValidationError), ({"replicas": "0"}, ValidationError),
     ({"model": "nobody"}, InputError)],
)  # fmt: skip
def test_wrong_arguments(wrong, error):
    with pytest.raises(error):
        Arguments(**wrong).settings()


@needs_ray
@pytest.mark.slow
@pytest.mark.enable_socket
def test_two_replicas_behind_one_port(tmp_path):
    environment = {
        **os.environ, "CHATTERBOX_VOICES": str(tmp_path), "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled",
    }  # fmt: skip
    arguments = ["model=pico", "device=cpu", "replicas=2", "gpus=0"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"

        def speak(seed: int) -> bytes:
            body = {"input": "Hello there.", "seed": seed % 2, "response_format": "pcm"}
            answer = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=300)
            return answer.raise_for_status().content

        with ThreadPoolExecutor(4) as threads:
            first, second, *others = threads.map(speak, range(8))
        assert first != second and others == [first, second] * 3, "whichever replica answers"
        assert httpx.get(f"{address}/health").json()["loaded"] == {"pico": True}
        process.communicate()
