"""Many clients of one server at once: whether each hears its own sound, and how soon.

    python -m benchmarks.server_load [--clients 32] [--seconds 180] [--output FILE.json]

Starts ``chatterbox-opt serve --model pico`` in a process of its own. First one client asks for all
texts, one after the other: that is the throughput to compare with, and the sound that each text and
seed must have. Then all clients ask, with staggered starts, again and again until the time is up.
Every answer is compared with the first one's bytes, of the same latency (``X-Latency``): while more
requests are in than there are decode slots, the server makes whole chunks, whose sound differs a
little from that of their parts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from chatterbox_opt.audio.prebuffer import Prebuffer, simulate
from chatterbox_opt.config.hop_schedule import HopSchedule

TEXTS = (
    "The boat left the harbour early, long before the fog had lifted.",
    "Nobody on the pier saw it go.",
    "Please call me back when you have time, it is about the meeting on Friday.",
    "Two coffees and a glass of water.",
    "It rained all night, and in the morning the river was over its banks.",
    "Yes, of course.",
    "Turn left at the church, then go straight on until you see the market.",
    "She opened the letter, read it twice, and put it away without a word.",
)
BYTES_A_SECOND = 48_000


@dataclass(frozen=True)
class Answer:
    """One answer: seconds from the request to each part, with the part's seconds of sound."""

    text: int
    latency: str
    arrivals: tuple[tuple[float, float], ...]
    content: bytes

    @property
    def seconds(self) -> float:
        return len(self.content) / BYTES_A_SECOND


async def ask(client: httpx.AsyncClient, text: int, *, split: bool = False) -> Answer:
    """Ask for a text with its seed, as PCM; with ``split`` whole chunks."""
    body = {"input": TEXTS[text], "seed": text, "response_format": "pcm", "split": split}
    started, arrivals, parts = time.perf_counter(), [], []
    async with client.stream("POST", "/v1/audio/speech", json=body) as response:
        response.raise_for_status()
        async for part in response.aiter_bytes():
            arrivals.append((time.perf_counter() - started, len(part) / BYTES_A_SECOND))
            parts.append(part)
    return Answer(text, response.headers["x-latency"], tuple(arrivals), b"".join(parts))


async def one_after_the_other(client: httpx.AsyncClient, seconds: float) -> list[Answer]:
    """All texts, again and again until the time is up."""
    answers, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(answers) < len(TEXTS):
        answers.append(await ask(client, len(answers) % len(TEXTS)))
    return answers


async def at_once(client: httpx.AsyncClient, clients: int, seconds: float) -> list[Answer]:
    """Clients that begin one after the other within the first tenth of the time."""
    end = time.perf_counter() + seconds

    async def repeat(number: int) -> list[Answer]:
        await asyncio.sleep(seconds / 10 * number / clients)
        answers = []
        while time.perf_counter() < end:
            answers.append(await ask(client, (number + len(answers)) % len(TEXTS)))
        return answers

    return sum(await asyncio.gather(*(repeat(number) for number in range(clients))), [])


def figures(answers: list[Answer], elapsed: float) -> dict[str, float | int]:
    """What is reported of a run."""
    firsts = sorted(answer.arrivals[0][0] for answer in answers)
    hops = HopSchedule().seconds
    played = [simulate(one.arrivals, Prebuffer(0.0, schedule=hops)) for one in answers]
    return {
        "answers": len(answers),
        "seconds": elapsed,
        "realtime_x": sum(answer.seconds for answer in answers) / elapsed,
        "first_audio_seconds": statistics.median(firsts),
        "first_audio_p95_seconds": firsts[int(0.95 * (len(firsts) - 1))],
        "underruns": sum(one.underruns for one in played),
    }


async def lag(client: httpx.AsyncClient) -> dict[str, float]:
    """How often the server's event loop was late, by the upper bounds of its histogram."""
    lines = (await client.get("/metrics")).text.splitlines()
    name = "chatterbox_event_loop_lag_seconds_bucket"
    counts = (line.partition(" ") for line in lines if line.startswith(name))
    return {labels.split('"')[1]: float(count) for labels, _, count in counts}


async def memory(client: httpx.AsyncClient) -> float:
    """MiB that the server holds."""
    lines = (await client.get("/metrics")).text.splitlines()
    name = "process_resident_memory_bytes "
    return sum(float(line.split()[1]) for line in lines if line.startswith(name)) / (1 << 20)


async def measure(address: str, clients: int, seconds: float) -> dict[str, object]:
    """Both runs, and whether all sound was right."""
    async with httpx.AsyncClient(
        base_url=address, timeout=600, limits=httpx.Limits(max_connections=None)
    ) as client:
        started = time.perf_counter()
        alone = await one_after_the_other(client, seconds / 3)
        rows = {"alone": figures(alone, time.perf_counter() - started)}
        whole = [await ask(client, text, split=True) for text in range(len(TEXTS))]
        right = {(one.text, one.latency): one.content for one in [*alone, *whole]}
        held, before, started = await memory(client), await lag(client), time.perf_counter()
        answers = await at_once(client, clients, seconds)
        rows["at once"] = figures(answers, time.perf_counter() - started)
        after = await lag(client)
        wrong = sum(
            answer.content != right[answer.text, answer.latency] for answer in [*alone, *answers]
        )
        late = {bound: after[bound] - before[bound] for bound in after}
        return {
            "clients": clients,
            "rows": rows,
            "wrong": wrong,
            "throughput": rows["at once"]["realtime_x"] / rows["alone"]["realtime_x"],
            "event_loop_lag": late,
            "memory_growth_mib": await memory(client) - held,
        }


def main() -> None:
    """Start the server, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--port", type=int, default=8014)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    command = [sys.executable, "-m", "chatterbox_opt", "serve", "--model", "pico"]
    address = f"http://127.0.0.1:{chosen.port}"
    with subprocess.Popen([*command, "--port", str(chosen.port), "--quiet"]) as server:
        try:
            wait_until_loaded(address)
            result = asyncio.run(measure(address, chosen.clients, chosen.seconds))
        finally:
            server.terminate()
    text = json.dumps(result, indent=2)
    print(text)
    if chosen.output:
        chosen.output.write_text(f"{text}\n")


def wait_until_loaded(address: str) -> None:
    """Wait until the model is warm."""
    for _ in range(600):
        try:
            if all(httpx.get(f"{address}/health").json()["loaded"].values()):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
