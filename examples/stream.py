"""Write a long text chunk by chunk, as each chunk is ready.

    python examples/stream.py [OUTPUT.wav]

A chunk is one or more sentences, at most 300 characters. A player would get ``samples`` in place
of the file: the first samples arrive long before the last sentence is synthesized.
"""

import sys
import time

import soundfile

from chatterbox_opt import Engine, Sampling

TEXT = """A long text is split at its sentences. While the first chunk is played, the next one is
made, and so the wait before the first sound does not grow with the length of the text.

Each chunk ends with the silence that belongs between it and the next. A new paragraph gets a longer
one than a new sentence. So the chunks, joined, are the complete audio.

The voice, the seed and all other settings are the same for every chunk. With the same seed the
whole text comes out the same again."""
RATE = 24_000  # of all models

output = sys.argv[1] if len(sys.argv) > 1 else "stream.wav"
with Engine.load("pico") as engine, soundfile.SoundFile(output, "w", RATE, 1) as file:
    start = time.perf_counter()
    for samples in engine.stream(TEXT, engine.voice("ada"), Sampling(seed=7)):
        file.write(samples)
        seconds, elapsed = len(samples) / RATE, time.perf_counter() - start
        print(f"{seconds:.1f} s of audio, ready after {elapsed:.1f} s")
