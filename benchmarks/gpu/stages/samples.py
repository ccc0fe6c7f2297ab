"""Samples of the built-in model on the GPU, saved for a speech recognizer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.gpu.context import SAMPLES, Context, main
from benchmarks.gpu.kinds import SPEECH
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.config.model_config import SAMPLE_RATE

MODEL = "pico"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "He whistled quietly while he painted the garden gate green.",
)
REFERENCE = ("cpu", "float32")
RUNS = 3  # eager, captured, replayed: the last one is saved
Wave = npt.NDArray[np.float32]


def run(context: Context) -> None:
    """Run the stage."""
    folder = context.scratch / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    exact: dict[int, Wave] = {}
    for device, dtype in (
        REFERENCE,
        *((context.device, d) for d in ("float32", "float16", "int8")),
    ):
        compile = {} if device == "cpu" else {"compile": "cudagraphs"}
        overrides = {"dtype": dtype} | compile
        with (
            context.part(f"{device} {dtype}"),
            Engine.load(MODEL, "dev", device=device, overrides=overrides) as engine,
        ):
            for i, text in enumerate(TEXTS):
                sampling = Sampling(seed=i, temperature=0.0, max_tokens=context.sizes.sample_tokens)
                samples = synthesize(engine, text, sampling, RUNS if compile else 1)
                exact.setdefault(i, samples)
                soundfile.write(folder / f"{device}-{dtype}-{i}.flac", samples, SAMPLE_RATE)
                labels = {"device": device, "dtype": dtype, "text": i}
                context.put(SPEECH, labels | comparison(samples, exact[i]))


def synthesize(engine: Engine, text: str, sampling: Sampling, runs: int) -> Wave:
    """The audio of the last of several runs."""
    for _ in range(runs):
        audio = engine.synthesize(text, None, sampling)
    return audio.samples


def comparison(samples: Wave, exact: Wave) -> dict[str, float]:
    """Against float32 on the CPU: seconds of both, largest difference, loudness."""
    length = min(len(samples), len(exact))
    return {
        "seconds": len(samples) / SAMPLE_RATE,
        "seconds_exact": len(exact) / SAMPLE_RATE,
        "difference": float(np.abs(samples[:length] - exact[:length]).max()),
        "loudness": float((samples**2).mean() ** 0.5),
    }


if __name__ == "__main__":
    main(run)
