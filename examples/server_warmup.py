"""The core of a server: one engine, warm before the first request, and many clients.

    python examples/server_warmup.py [DIRECTORY]

``warm_up`` compiles kernels and captures CUDA graphs, so that the first request takes no longer
than the others; texts of typical length give graphs of the right sizes. Any number of threads or
coroutines may ``submit`` requests: they share decode steps. A client gets the audio of each chunk
as soon as it is ready; one that goes away cancels its request.
"""

import asyncio
import sys
from pathlib import Path

import soundfile

from chatterbox_opt import Engine, Request, Sampling

SAMPLE_RATE = 24_000
directory = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
directory.mkdir(parents=True, exist_ok=True)


async def client(engine: Engine, number: int, text: str) -> None:
    """Write the audio of one request while it is being synthesized."""
    handle = engine.submit(Request(f"reply-{number}", text, sampling=Sampling(seed=number)))
    with soundfile.SoundFile(directory / f"{handle.id}.wav", "w", SAMPLE_RATE, 1) as file:
        async for piece in handle:
            file.write(piece.samples)
    first, done = handle.metrics.first_audio, handle.metrics.done
    print(f"{handle.id}: first audio after {first:.1f} s, done after {done:.1f} s")


async def serve(engine: Engine) -> None:
    """Answer several clients at once; the last one goes away."""
    texts = ("Hello.", "How may I help you?", "Goodbye.")
    impatient = engine.submit(Request("impatient", "Never mind.", sampling=Sampling(seed=4)))
    impatient.cancel()
    await asyncio.gather(*(client(engine, i, text) for i, text in enumerate(texts, 1)))
    print((await impatient).error)


with Engine.load("pico") as engine:
    engine.warm_up("A reply of typical length, with about a dozen words in it.")
    asyncio.run(serve(engine))
