"""The built-in model on the GPU: what it says is kept, to be heard by a recognizer later."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.gpu.context import SPOKEN, Context, main
from benchmarks.gpu.kinds import SPEECH
from chatterbox_opt import Engine, Sampling
from chatterbox_opt.config.model_config import SAMPLE_RATE

MODEL = "pico"
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "He whistled quietly while he painted the garden gate green.",
)
REFERENCE = ("cpu", "float32")
TURNS = 3  # met, recorded, replayed: the last is kept
Wave = npt.NDArray[np.float32]


def run(context: Context) -> None:
    """See the module."""
    folder = context.scratch / SPOKEN
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
                sampling = Sampling(seed=i, temperature=0.0, max_tokens=context.sizes.speech_tokens)
                samples = num_generated(engine, text, sampling, TURNS if compile else 1)
                exact.setdefault(i, samples)
                soundfile.write(folder / f"{device}-{dtype}-{i}.flac", samples, SAMPLE_RATE)
                told = {"device": device, "dtype": dtype, "text": i}
                context.put(SPEECH, told | compared(samples, exact[i]))


def num_generated(engine: Engine, text: str, sampling: Sampling, turns: int) -> Wave:
    """What is said, the last of some times."""
    for _ in range(turns):
        audio = engine.synthesize(text, None, sampling)
    return audio.samples


def compared(samples: Wave, exact: Wave) -> dict[str, float]:
    """Against the processor's float32: seconds of both, largest difference, loudness."""
    length = min(len(samples), len(exact))
    return {
        "seconds": len(samples) / SAMPLE_RATE,
        "seconds_exact": len(exact) / SAMPLE_RATE,
        "difference": float(np.abs(samples[:length] - exact[:length]).max()),
        "loudness": float((samples**2).mean() ** 0.5),
    }


if __name__ == "__main__":
    main(run)
