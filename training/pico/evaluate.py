"""Evaluates intelligibility: synthesizes sentences, runs speech recognition, checks each wav.

Responsible for word error rates and signal checks. Not responsible for training. Run in the
repository's root:

    python -m training.pico.evaluate --recogniser tiny.en --recogniser base --json build/e.json

Needs the extra ``ears``. Does not measure naturalness.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.cli.terminal import console
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError, InputError, SilenceError
from chatterbox_opt.eval import wer, whisper
from chatterbox_opt.request import Progress
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.utils.quiet import silence_dependencies
from training.pico.report import print_report
from training.pico.sound import loudness

if TYPE_CHECKING:
    from chatterbox_opt import Engine
    from chatterbox_opt.audio.watermark import Watermark

Wave = npt.NDArray[np.float32]

SENTENCES = Path(__file__).parent / "sentences" / "everyday.txt"
OFFSET = 0.005  # absolute mean sample from which a wave has a DC fault
EDGE = round(0.005 * SAMPLE_RATE)  # samples at both ends that must be quiet, otherwise they click
QUIET = 10 ** (-40 / 20)  # their peak, -40 dBFS
MARKED = 0.75  # watermark strength; unmarked audio stays below 0.6, marked is above 0.9


@dataclass(frozen=True, slots=True)
class Synthesis:
    """A synthesized sentence.

    Attributes:
        voice: its name; None is the model's default.
        samples: float32 [n] in [-1, 1] at 24 kHz; empty if the model generated no audio.
        tokens: number of speech tokens.
        endless: a chunk of it reached max_tokens and was cut off.
        seconds: of compute.
    """

    text: str
    voice: str | None
    seed: int
    samples: Wave
    tokens: int
    endless: bool
    seconds: float

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class AudioChecks:
    """Signal measurements of a wave.

    Attributes:
        peak, offset: largest and mean sample; full scale is 1.
        start, end: peak of the first and last 5 ms.
        loudness: in LUFS; None for silence.
        watermark: strength, 0 to 1.
    """

    peak: float
    offset: float
    start: float
    end: float
    loudness: float | None
    watermark: float

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the failed checks."""
        checks = {
            "peak": self.peak < 1.0,
            "offset": abs(self.offset) < OFFSET,
            "start": self.start < QUIET,
            "end": self.end < QUIET,
            "loudness": self.loudness is not None,
            "watermark": self.watermark > MARKED,
        }
        return tuple(name for name, passed in checks.items() if not passed)


@dataclass(frozen=True, slots=True)
class Transcript:
    """A recognizer's output: its text, word errors, words of the reference."""

    text: str
    errors: int
    words: int


def read_sentences(path: Path, limit: int | None) -> list[str]:
    """Read one sentence per line; skips empty lines and comments (#).

    Raises:
        InputError: the file cannot be read or has no sentences.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read ({error}): give a text file") from error
    sentences = [line for line in lines if line and not line.startswith("#")][:limit]
    if not sentences:
        raise InputError(f"'{path}' contains no sentences: write one per line")
    return sentences


def synthesize_all(
    engine: Engine, sentences: Sequence[str], voices: Sequence[str | None], sampling: Sampling
) -> Iterator[Synthesis]:
    """Synthesize each sentence with the next voice and the seed of ``sampling`` plus its index."""
    loaded = [engine.voice(name) for name in voices]  # not part of the measured time
    for i, text in enumerate(sentences):
        which = i % len(voices)
        seed = (sampling.seed or 0) + i  # independent draws
        longest = 0

        def observe(progress: Progress) -> None:
            nonlocal longest
            longest = max(longest, progress.tokens)

        start = time.perf_counter()
        parameters = Sampling(seed=seed, max_tokens=sampling.max_tokens)
        try:
            audio = engine.synthesize(text, loaded[which], parameters, observe)
            samples, tokens = audio.samples, audio.tokens
        except SilenceError:  # nothing was synthesized: all words are errors
            samples, tokens = np.zeros(0, dtype=np.float32), 0
        spent = time.perf_counter() - start
        endless = longest >= sampling.max_tokens
        yield Synthesis(text, voices[which], seed, samples, tokens, endless, spent)


def inspect(wave: Wave, mark: Watermark) -> AudioChecks:
    """Measure a wave, float32 [n] at 24 kHz."""
    if not len(wave):
        return AudioChecks(peak=0.0, offset=0.0, start=0.0, end=0.0, loudness=None, watermark=0.0)
    return AudioChecks(
        peak=float(np.abs(wave).max()),
        offset=float(wave.mean(dtype=np.float64)),
        start=float(np.abs(wave[:EDGE]).max()),
        end=float(np.abs(wave[-EDGE:]).max()),
        loudness=loudness(wave),
        watermark=mark.strength(wave),
    )


def transcribe(recognizer: whisper.Recognizer, synthesis: Synthesis) -> Transcript:
    """Run speech recognition on a sentence."""
    text = recognizer.transcribe(synthesis.samples, SAMPLE_RATE)
    return Transcript(text, *wer.word_errors(synthesis.text, text))


def summarize(syntheses: Sequence[Synthesis], checks: Sequence[AudioChecks]) -> dict[str, Any]:
    """Tokens, speed and checks over all sentences."""
    levels = [check.loudness for check in checks if check.loudness is not None]
    duration = sum(one.duration for one in syntheses)
    compute = sum(one.seconds for one in syntheses)
    return {
        "sentences": len(syntheses),
        "spoken_seconds": duration,
        "tokens_per_word": sum(s.tokens for s in syntheses)
        / sum(len(s.text.split()) for s in syntheses),
        "endless_share": sum(one.endless for one in syntheses) / len(syntheses),
        "realtime_x": duration / compute if compute else None,
        "loudness": {"low": min(levels), "mean": float(np.mean(levels)), "high": max(levels)}
        if levels
        else None,
        "weakest_watermark": min(check.watermark for check in checks),
        "failures": dict(Counter(name for check in checks for name in check.failures)),
    }


def rates(
    syntheses: Sequence[Synthesis], transcripts: Sequence[Transcript], voices: Sequence[str | None]
) -> dict[str, Any]:
    """Word error rate over all sentences, and per voice."""
    counts = [(one.errors, one.words) for one in transcripts]
    by_voice = {
        voice or "own": _rate(
            [c for c, s in zip(counts, syntheses, strict=True) if s.voice == voice]
        )
        for voice in dict.fromkeys(voices)
    }
    return _rate(counts) | {"voices": by_voice}


def _rate(counts: list[tuple[int, int]]) -> dict[str, Any]:
    if not sum(words for _, words in counts):  # a voice without sentences
        return {"errors": 0, "words": 0, "rate": None, "low": None, "high": None}
    total = wer.rate_of(counts)
    return asdict(total) | {"rate": total.rate}


def evaluate(
    engine: Engine,
    sentences: Sequence[str],
    voices: Sequence[str | None],
    sampling: Sampling,
    recognizers: Sequence[whisper.Recognizer],
    out: Path | None,
) -> dict[str, Any]:
    """Synthesize, save, check and transcribe the sentences.

    Returns:
        ``summary``; ``recognisers``: name to word error rate, total and per voice;
        ``sentences``: one entry per sentence.
    """
    from chatterbox_opt.audio.watermark import Watermark

    mark = Watermark()
    syntheses: list[Synthesis] = []
    for one in synthesize_all(engine, sentences, voices, sampling):
        syntheses.append(one)
        _log(f"synthesized {len(syntheses)} of {len(sentences)}: {one.duration:.1f} s")
        if out:
            with audio_files.writer(str(out / f"{len(syntheses):04d}.wav")) as sink:
                sink.write(one.samples)
    _log("checking signals")
    checks = [inspect(one.samples, mark) for one in syntheses]
    transcripts: dict[str, list[Transcript]] = {}
    for recognizer in recognizers:
        _log(f"transcribing with {recognizer.name}")
        transcripts[recognizer.name] = [transcribe(recognizer, one) for one in syntheses]
    return {
        "summary": summarize(syntheses, checks),
        "recognisers": {name: rates(syntheses, all_, voices) for name, all_ in transcripts.items()},
        "sentences": [
            _entry(one, check, {name: all_[i] for name, all_ in transcripts.items()})
            for i, (one, check) in enumerate(zip(syntheses, checks, strict=True))
        ],
    }


def _entry(
    synthesis: Synthesis, checks: AudioChecks, transcripts: dict[str, Transcript]
) -> dict[str, Any]:
    return {
        "text": synthesis.text,
        "voice": synthesis.voice,
        "seed": synthesis.seed,
        "tokens": synthesis.tokens,
        "endless": synthesis.endless,
        "spoken_seconds": synthesis.duration,
        "seconds": synthesis.seconds,
        "sound": asdict(checks),
        "failures": checks.failures,
        "heard": {name: asdict(one) for name, one in transcripts.items()},
    }


def _log(message: str) -> None:
    print(message, file=sys.stderr)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(  # noqa: PLR0913 - an option is a parameter in Typer
    sentences: Annotated[
        Path, typer.Argument(help="A text file, one sentence per line.")
    ] = SENTENCES,
    model: Annotated[str, typer.Option(help="Model name or directory.")] = "pico",
    voice: Annotated[
        list[str] | None,
        typer.Option(help="Voice; several are used round robin. Default: the model's."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first sentence; incremented for each next one.")
    ] = 0,
    max_tokens: Annotated[
        int, typer.Option(help="Maximum speech tokens per chunk.")
    ] = Sampling().max_tokens,
    recognizer: Annotated[
        list[str] | None,
        typer.Option("--recogniser", help="tiny.en or base; may be repeated."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of sentences; default: all.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory to save the wavs in.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the full report.")
    ] = None,
) -> None:
    """Synthesize sentences and measure their intelligibility."""
    texts = read_sentences(sentences, limit)
    sampling = Sampling(seed=seed, max_tokens=max_tokens)
    recognizers = [
        whisper.Recognizer.load(name) for name in dict.fromkeys(recognizer or ["tiny.en"])
    ]
    if out:
        out.mkdir(parents=True, exist_ok=True)
    if json_file:
        audio_files.check_writable(str(json_file))
    from chatterbox_opt import Engine

    voices: list[str | None] = list(voice) if voice else [None]
    with Engine.load(model, overrides={"dtype": dtype} if dtype else None) as engine:
        report = evaluate(engine, texts, voices, sampling, recognizers, out)
        settings = {"model": model, "voices": voices, "file": str(sentences), "seed": seed}
        settings |= {"max_tokens": max_tokens, "plan": engine.plan.reasons}
    print_report(report)
    if json_file:
        with atomic_write(json_file) as part:
            part.write_text(json.dumps({"settings": settings} | report, indent=1) + "\n", "utf-8")


def main() -> None:
    """Run the command; errors are printed in one line."""
    silence_dependencies()
    console.show_log(console.Reporter())
    try:
        app()
    except ChatterboxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
