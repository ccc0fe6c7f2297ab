"""What the server adds to the engine's own time to first audio.

    python -m benchmarks.server_cost [--rounds 40] [--output FILE.json]

One process holds an engine with pico and, in a thread, the server over the same engine. Each round
has the same text and seed of ``Engine.submit`` and, by HTTP, of the server, in alternating order:
until the first piece is there, and until the first byte of PCM is. Nothing else is asked meanwhile.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.cli.serve.command import listening, server_of
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.request import LOW
from chatterbox_opt.server.engines import Engines
from chatterbox_opt.server.settings import ServerSettings

TEXT = "The boat left the harbour early, long before the fog had lifted."
HOST = "127.0.0.1"


@contextmanager
def served(engine: Engine, spec: EngineSpec) -> Iterator[int]:
    """The port of a server over the engine."""
    settings = ServerSettings(engines=(spec,), warm_up=False)
    engines = Engines(settings.engines, load=lambda _: engine)
    with listening(HOST, 0) as socket:
        server = server_of(settings, drain=1, engines=engines)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        try:
            yield socket.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def by_engine(engine: Engine, seed: int) -> float:
    """Seconds to the first piece; the rest is waited for."""
    started = time.perf_counter()
    handle = engine.submit(Request("cost", TEXT, sampling=Sampling(seed=seed), latency=LOW))
    next(handle)
    first = time.perf_counter() - started
    handle.result()
    return first


def by_http(port: int, seed: int) -> float:
    """Seconds to the first byte of sound, of a client that is connected; the rest is read."""
    body = json.dumps({"input": TEXT, "seed": seed, "response_format": "pcm"})
    connection = http.client.HTTPConnection(HOST, port)
    connection.connect()
    started = time.perf_counter()
    connection.request("POST", "/v1/audio/speech", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200 or not response.read(1):
        raise SystemExit(f"the server answered {response.status}")
    first = time.perf_counter() - started
    response.read()
    connection.close()
    return first


def measure(engine: Engine, port: int, rounds: int) -> dict[str, object]:
    """Medians in milliseconds, and those of the differences within a round."""
    calls: dict[str, Callable[[int], float]] = {
        "engine": lambda seed: by_engine(engine, seed),
        "http": lambda seed: by_http(port, seed),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-3, rounds):  # the first ones prepare lengths, and are not counted
        for name in sorted(calls, reverse=bool(number % 2)):
            seconds = calls[name](max(0, number))
            if number >= 0:
                times[name].append(1000 * seconds)
    added = [http - own for http, own in zip(times["http"], times["engine"], strict=True)]
    deciles = statistics.quantiles(added, n=10)
    return {
        "rounds": rounds,
        "engine_ms": statistics.median(times["engine"]),
        "http_ms": statistics.median(times["http"]),
        "added_ms": statistics.median(added),
        "added_p10_ms": deciles[0],
        "added_p90_ms": deciles[-1],
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    spec = EngineSpec(model="pico")
    engine = spec.load()  # the server closes it at its end
    engine.warm_up(TEXT)
    with served(engine, spec) as port:
        result = measure(engine, port, chosen.rounds)
    text = json.dumps(result, indent=2)
    print(text)
    if chosen.output:
        chosen.output.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
