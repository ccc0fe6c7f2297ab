"""Synthesize one sentence and write a wav.

    python examples/quickstart.py [OUTPUT.wav]

Uses pico, the small built-in model, which needs no download. For the full model, write
``Engine.load()``: it downloads 3 GB once.
"""

import sys

from chatterbox_opt import Engine, Sampling

output = sys.argv[1] if len(sys.argv) > 1 else "quickstart.wav"
with Engine.load("pico") as engine:
    text, voice = "Hello, world. This is the first example.", "clara"  # or "speaker.wav"
    audio = engine.synthesize(text, voice, Sampling(seed=7))
audio.save(output)
print(f"{audio.duration:.1f} s of audio -> {output}")
