"""How well a model is understood: it speaks sentences, recognisers listen, each wav is inspected.

Knows the engine, the recognisers (chatterbox_opt/ears.py) and what a sound file must not have.
Knows nothing of training. Run in the repository's root:

    python -m training.pico.evaluate --recogniser tiny.en --recogniser base --json build/e.json

Needs the extra ``ears``. Says nothing of how natural a voice is: nobody listens here.
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
from chatterbox_opt.cli import console
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import ChatterboxOptError, InputError, SilenceError
from chatterbox_opt.eval import wer, whisper
from chatterbox_opt.request import Progress
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.utils.atomic_file import atomic_write
from training.pico.sound import loudness

if TYPE_CHECKING:
    from chatterbox_opt import Engine
    from chatterbox_opt.audio.watermark import Watermark

Wave = npt.NDArray[np.float32]

SENTENCES = Path(__file__).parent / "sentences" / "everyday.txt"
LONGEST_LIST = 15  # sentences shown as heard wrong; --json has all
OFFSET = 0.005  # mean sample from which a wave is off centre
EDGE = round(0.005 * SAMPLE_RATE)  # samples at either end that must be quiet, else it clicks
QUIET = 10 ** (-40 / 20)  # their peak, -40 dBFS
MARKED = 0.75  # watermark strength; unmarked sound stays below 0.6, marked is above 0.9


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence that was spoken.

    Attributes:
        voice: its name; None is the model's own.
        samples: float32 [n] in [-1, 1] at 24 kHz; empty when the model said nothing.
        tokens: speech tokens in it.
        endless: a chunk of it reached max_tokens and was cut off.
        seconds: of work.
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
        """Seconds of sound."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Sound:
    """What can be said of a wave without understanding it.

    Attributes:
        peak, offset: largest and mean sample, of 1.
        start, end: peak of the first and last 5 ms.
        loudness: in LUFS; None where there is none: silence.
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
        """Names of the checks that it fails."""
        good = {
            "peak": self.peak < 1.0,
            "offset": abs(self.offset) < OFFSET,
            "start": self.start < QUIET,
            "end": self.end < QUIET,
            "loudness": self.loudness is not None,
            "watermark": self.watermark > MARKED,
        }
        return tuple(name for name, passed in good.items() if not passed)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a recogniser made of a sentence: its text, word errors, words of the reference."""

    text: str
    errors: int
    words: int


def read_sentences(path: Path, limit: int | None) -> list[str]:
    """One sentence a line; blank lines and those that begin with # are left out.

    Raises:
        InputError: the file cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' cannot be read ({error}): give a text file") from error
    sentences = [line for line in lines if line and not line.startswith("#")][:limit]
    if not sentences:
        raise InputError(f"'{path}' holds no sentences: write one a line")
    return sentences


def speak(
    engine: Engine, sentences: Sequence[str], voices: Sequence[str | None], sampling: Sampling
) -> Iterator[Said]:
    """Speak each sentence with the next voice; sentence i has the seed of ``sampling`` plus i."""
    ready = [engine.voice(name) for name in voices]  # the encoders' time is not the speech's
    for i, text in enumerate(sentences):
        which = i % len(voices)
        seed = (sampling.seed or 0) + i  # one seed for all would be one draw, not many
        longest = 0

        def observe(progress: Progress) -> None:
            nonlocal longest
            longest = max(longest, progress.tokens)

        start = time.perf_counter()
        knobs = Sampling(seed=seed, max_tokens=sampling.max_tokens)
        try:
            said = engine.synthesize(text, ready[which], knobs, observe)
            samples, tokens = said.samples, said.tokens
        except SilenceError:  # a sentence that it could not say: all its words are errors
            samples, tokens = np.zeros(0, dtype=np.float32), 0
        spent = time.perf_counter() - start
        endless = longest >= sampling.max_tokens
        yield Said(text, voices[which], seed, samples, tokens, endless, spent)


def inspect(wave: Wave, mark: Watermark) -> Sound:
    """Measure a wave, float32 [n] at 24 kHz."""
    if not len(wave):
        return Sound(peak=0.0, offset=0.0, start=0.0, end=0.0, loudness=None, watermark=0.0)
    return Sound(
        peak=float(np.abs(wave).max()),
        offset=float(wave.mean(dtype=np.float64)),
        start=float(np.abs(wave[:EDGE]).max()),
        end=float(np.abs(wave[-EDGE:]).max()),
        loudness=loudness(wave),
        watermark=mark.strength(wave),
    )


def listen(recogniser: whisper.Recognizer, said: Said) -> Heard:
    """Let a recogniser hear a sentence."""
    text = recogniser.transcribe(said.samples, SAMPLE_RATE)
    return Heard(text, *wer.word_errors(said.text, text))


def summarise(said: Sequence[Said], sounds: Sequence[Sound]) -> dict[str, Any]:
    """Tokens, speed and checks over all sentences."""
    levels = [sound.loudness for sound in sounds if sound.loudness is not None]
    spoken = sum(one.duration for one in said)
    work = sum(one.seconds for one in said)
    return {
        "sentences": len(said),
        "spoken_seconds": spoken,
        "tokens_per_word": sum(s.tokens for s in said) / sum(len(s.text.split()) for s in said),
        "endless_share": sum(one.endless for one in said) / len(said),
        "realtime_factor": work / spoken if spoken else None,
        "loudness": {"low": min(levels), "mean": float(np.mean(levels)), "high": max(levels)}
        if levels
        else None,
        "weakest_watermark": min(sound.watermark for sound in sounds),
        "failures": dict(Counter(name for sound in sounds for name in sound.failures)),
    }


def rates(
    said: Sequence[Said], heard: Sequence[Heard], voices: Sequence[str | None]
) -> dict[str, Any]:
    """Word error rate of all sentences, and of each voice's."""
    counts = [(one.errors, one.words) for one in heard]
    by_voice = {
        voice or "own": _rate([c for c, s in zip(counts, said, strict=True) if s.voice == voice])
        for voice in dict.fromkeys(voices)
    }
    return _rate(counts) | {"voices": by_voice}


def _rate(counts: list[tuple[int, int]]) -> dict[str, Any]:
    if not sum(words for _, words in counts):  # a voice that had no turn
        return {"errors": 0, "words": 0, "rate": None, "low": None, "high": None}
    found = wer.rate_of(counts)
    return asdict(found) | {"rate": found.rate}


def print_report(report: dict[str, Any]) -> None:
    """Print what ``evaluate`` returned to standard output."""
    for name, found in report["recognisers"].items():
        print(f"{name}: {_words(found)}")
        if len(found["voices"]) > 1:
            for voice, part in found["voices"].items():
                print(f"  {voice}: {_words(part)}")
        _print_wrong(name, report["sentences"])
    whole = report["summary"]
    failures = ", ".join(f"{name} {n}" for name, n in whole["failures"].items()) or "none"
    levels = whole["loudness"]
    print(f"tokens per word: {whole['tokens_per_word']:.1f}")
    print(f"cut off at max_tokens: {whole['endless_share']:.1%}")
    if whole["realtime_factor"]:
        print(f"real-time factor: {whole['realtime_factor']:.3f}")
    if levels:
        span = f"{levels['low']:.1f} to {levels['high']:.1f}"
        print(f"loudness: {levels['mean']:.1f} LUFS ({span})")
    print(f"weakest watermark: {whole['weakest_watermark']:.2f}")
    print(f"failed checks, of {whole['sentences']} wavs: {failures}")


def _words(found: dict[str, Any]) -> str:
    if found["rate"] is None:
        return "no words"
    bounds = f"{found['low']:.1%} to {found['high']:.1%}"
    return f"WER {found['rate']:.1%} of {found['words']} words (95 %: {bounds})"


def _print_wrong(name: str, sentences: list[dict[str, Any]]) -> None:
    wrong = [(row["heard"][name], row["text"]) for row in sentences if row["heard"][name]["errors"]]
    wrong.sort(key=lambda pair: pair[0]["errors"] / max(pair[0]["words"], 1), reverse=True)
    for heard, text in wrong[:LONGEST_LIST]:
        print(f"  {heard['errors']:3d}  {text} | {heard['text']}")
    if len(wrong) > LONGEST_LIST:
        print(f"       and {len(wrong) - LONGEST_LIST} more")


def evaluate(
    engine: Engine,
    sentences: Sequence[str],
    voices: Sequence[str | None],
    sampling: Sampling,
    recognisers: Sequence[whisper.Recognizer],
    out: Path | None,
) -> dict[str, Any]:
    """Speak, keep, inspect and listen.

    Returns:
        ``summary``; ``recognisers``: name to word error rate, of all and by voice;
        ``sentences``: one entry each.
    """
    from chatterbox_opt.audio.watermark import Watermark

    mark = Watermark()
    said: list[Said] = []
    for one in speak(engine, sentences, voices, sampling):
        said.append(one)
        _say(f"spoken {len(said)} of {len(sentences)}: {one.duration:.1f} s")
        if out:
            with audio_files.writer(str(out / f"{len(said):04d}.wav")) as sink:
                sink.write(one.samples)
    _say("inspecting")
    sounds = [inspect(one.samples, mark) for one in said]
    heard: dict[str, list[Heard]] = {}
    for recogniser in recognisers:
        _say(f"{recogniser.name} listens")
        heard[recogniser.name] = [listen(recogniser, one) for one in said]
    return {
        "summary": summarise(said, sounds),
        "recognisers": {name: rates(said, all_, voices) for name, all_ in heard.items()},
        "sentences": [
            _entry(one, sound, {name: all_[i] for name, all_ in heard.items()})
            for i, (one, sound) in enumerate(zip(said, sounds, strict=True))
        ],
    }


def _entry(said: Said, sound: Sound, heard: dict[str, Heard]) -> dict[str, Any]:
    return {
        "text": said.text,
        "voice": said.voice,
        "seed": said.seed,
        "tokens": said.tokens,
        "endless": said.endless,
        "spoken_seconds": said.duration,
        "seconds": said.seconds,
        "sound": asdict(sound),
        "failures": sound.failures,
        "heard": {name: asdict(one) for name, one in heard.items()},
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr)


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def command(  # noqa: PLR0913 - an option is a parameter in Typer
    sentences: Annotated[Path, typer.Argument(help="A text file, a sentence a line.")] = SENTENCES,
    model: Annotated[str, typer.Option(help="A model's name or directory.")] = "pico",
    voice: Annotated[
        list[str] | None,
        typer.Option(help="A voice; several are dealt round robin. None: the model's own."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first sentence; the next has one more.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="For one chunk.")] = Sampling().max_tokens,
    recogniser: Annotated[
        list[str] | None, typer.Option(help="tiny.en or base; may be given twice.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the wavs in this directory.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it all here.")] = None,
) -> None:
    """Speak sentences, and measure how well they are understood."""
    texts = read_sentences(sentences, limit)
    sampling = Sampling(seed=seed, max_tokens=max_tokens)
    listeners = [whisper.Recognizer.load(name) for name in dict.fromkeys(recogniser or ["tiny.en"])]
    if out:
        out.mkdir(parents=True, exist_ok=True)
    if json_file:
        audio_files.check_writable(str(json_file))
    from chatterbox_opt import Engine

    voices: list[str | None] = list(voice) if voice else [None]
    with Engine.load(model, overrides={"dtype": dtype} if dtype else None) as engine:
        report = evaluate(engine, texts, voices, sampling, listeners, out)
        settings = {"model": model, "voices": voices, "file": str(sentences), "seed": seed}
        settings |= {"max_tokens": max_tokens, "plan": engine.plan.reasons}
    print_report(report)
    if json_file:
        with atomic_write(json_file) as part:
            part.write_text(json.dumps({"settings": settings} | report, indent=1) + "\n", "utf-8")


def main() -> None:
    """Run the command; what is wrong is said in one line."""
    console.be_quiet()
    console.show_warnings(console.Reporter())
    try:
        app()
    except ChatterboxOptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    main()
