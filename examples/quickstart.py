"""Synthesize one sentence and write a wav.

    python examples/quickstart.py [OUTPUT.wav]

Uses pico, the small built-in model, which needs no download. For the full model, write
``Engine.load()``: it downloads 3 GB once.
"""

import sys

import soundfile

from chatterbox_opt import Engine, Sampling

output = sys.argv[1] if len(sys.argv) > 1 else "quickstart.wav"
with Engine.load("pico") as engine:
    voice = engine.voice("clara")  # or a recording: engine.voice("speaker.wav")
    audio = engine.synthesize("Hello, world. This is the first example.", voice, Sampling(seed=7))
soundfile.write(output, audio.samples, audio.sample_rate)
print(f"{audio.duration:.1f} s of audio -> {output}")
