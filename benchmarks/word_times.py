"""What word times cost: the pass of T3 that they need, as a share of T3's time.

Responsible for the texts and the table. Not responsible for the times themselves.

    python -m benchmarks.word_times MODEL     a directory of ``models make --size full``, or a name

The figures are medians over the runs, after one that warms up. Random weights do not stop, so
every text gets the tokens of calm speech.
"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer

from chatterbox_opt import Engine, Request, Sampling
from chatterbox_opt.bench.timing import SENTENCE
from chatterbox_opt.config.model_config import TOKEN_RATE

LETTERS_PER_SECOND = 15
BOUND = 0.08


def main(
    model: Annotated[str, typer.Argument(help="Name or directory.")],
    dtype: Annotated[str, typer.Option(help="Of T3, such as int8.")] = "int8",
    runs: Annotated[int, typer.Option(help="Measured runs of each text.")] = 3,
) -> None:
    """Print a row for texts of one, two and three sentences."""
    with Engine.load(model, overrides={"dtype": dtype}, watermark=False) as engine:
        print(engine.plan.summary())
        print("| tokens | t3 | alignment | share |\n|---|---|---|---|")
        for sentences in (1, 2, 3):
            text = " ".join([SENTENCE] * sentences)
            tokens = round(len(text) / LETTERS_PER_SECOND * TOKEN_RATE)
            sampling = Sampling(seed=0, max_tokens=tokens, cfm_steps=1)
            request = Request("", text, sampling=sampling, timestamps=True)
            engine.submit(request).result().audio()
            results = [engine.submit(request).result() for _ in range(runs)]
            seconds = [result.audio().seconds for result in results]
            t3, alignment = (
                statistics.median(one[stage] for one in seconds) for stage in ("t3", "alignment")
            )
            made = results[0].audio().tokens
            verdict = "" if alignment <= BOUND * t3 else f" (above {BOUND:.0%})"
            print(f"| {made} | {t3:.3f} s | {alignment:.3f} s | {alignment / t3:.1%}{verdict} |")


if __name__ == "__main__":
    typer.run(main)
