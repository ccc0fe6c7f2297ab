"""The core of a server: one thread owns the engine, warm before the first request.

    python examples/server_warmup.py [DIRECTORY]

Any number of threads may put requests into the queue. The server thread waits for one and hands it
to ``Engine.batch`` with all that have arrived since; they share decode steps. ``warm_up`` compiles
kernels and captures CUDA graphs, so that the first request takes no longer than the others; texts
of typical length give graphs of the right sizes.
"""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import soundfile

from chatterbox_opt import Engine, Request, Sampling

directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
directory.mkdir(parents=True, exist_ok=True)
waiting: "queue.Queue[Request | None]" = queue.Queue()
ready = threading.Event()


def arrived(first: Request) -> Iterator[Request]:
    """The first request and all that are waiting. Never blocks: decoding would stand still."""
    yield first
    while not waiting.empty():
        request = waiting.get()
        if request is None:
            waiting.put(None)  # for the loop below
            return
        yield request


def serve() -> None:
    """Load, warm up, then answer until the queue is closed with None."""
    with Engine.load("pico") as engine:
        engine.warm_up("A reply of typical length, with about a dozen words in it.")
        ready.set()
        while (first := waiting.get()) is not None:
            start = time.perf_counter()
            for result in engine.batch(arrived(first)):
                audio = result.audio()
                path = directory / f"{result.id}.wav"
                soundfile.write(path, audio.samples, audio.sample_rate)
                elapsed = time.perf_counter() - start
                print(f"{result.id}: {audio.duration:.1f} s of audio after {elapsed:.1f} s")


server = threading.Thread(target=serve)
server.start()
ready.wait()
for number, text in enumerate(("Hello.", "How may I help you?", "Goodbye."), 1):
    waiting.put(Request(f"reply-{number}", text, sampling=Sampling(seed=number)))
waiting.put(None)
server.join()
