"""Evaluates word times against the teacher's own durations.

Responsible for the teacher's words of held-out sentences, and for how far pico's word times are
from them. Not responsible for the times themselves (chatterbox_opt/words).

    python -m training.pico.word_times

The teacher's codes are forced on pico's T3, as its own tokens are after decoding; the times are
taken from the attention and from the teacher's sound. The result has what the tests need to repeat
this without the teacher: the text, the codes, and when each word begins and ends.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from chatterbox_opt.audio.silence import FRAME, LEVEL, sound_levels
from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.decoding.alignment import align, words_of
from chatterbox_opt.engine.decoding.prompts import text_tokens
from chatterbox_opt.engine.sequence import RequestState, Sequence
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.chunking import Chunk, split
from chatterbox_opt.text.english.normalizer import read_english
from chatterbox_opt.text.tokenizers.loading import TextTokenizer
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import default_store
from chatterbox_opt.words.written import WrittenWord
from training.pico import codes
from training.pico.teacher import Speaker, Teacher, TeacherOutput

HERE = Path(__file__).parent
SENTENCES = [HERE / "sentences" / name for name in ("everyday.txt", "numbers.txt")]
RESULTS = HERE / "results" / "words.json"


@dataclass(frozen=True, slots=True)
class Truth:
    """A sentence as the teacher says it.

    Attributes:
        text: normalized, a chunk.
        codes: speech tokens.
        words: start and end of each word in seconds, without pauses.
    """

    text: str
    codes: list[int]
    words: list[tuple[float, float]]


def truth_of(text: str, output: TeacherOutput, wave: np.ndarray) -> Truth:
    """What the teacher's durations say, from the first to the last frame of a word's phones.

    The last phone before a pause lasts 0.3 s longer than its sound: what follows is digital
    silence, 130 dB below the peak, and no part of the word.
    """
    is_phone = output.symbols > codes.LAST_PAUSE
    levels = sound_levels(wave) > LEVEL * np.abs(wave).max()
    at = (np.arange(len(is_phone)) + 0.5) * codes.FRAME * SAMPLE_RATE / FRAME
    heard = is_phone & levels[np.minimum(at.astype(int), len(levels) - 1)]
    words = []
    for word in range(len(text.split())):
        phones = np.flatnonzero((output.words == word) & is_phone)
        sound = np.flatnonzero((output.words == word) & heard)
        last = sound[-1] if len(sound) else phones[-1]
        words.append((round(phones[0] * codes.FRAME, 4), round((last + 1) * codes.FRAME, 4)))
    return Truth(text, codes.codes_of(output.symbols).tolist(), words)


def timed(
    t3: T3, tokenizer: TextTokenizer, voice: Voice, truth: Truth, wave: np.ndarray | None
) -> list[tuple[float, float]]:
    """Start and end of each word by T3's attention.

    Args:
        wave: float32 [n] at 24 kHz; None: the 40 ms grid alone.
    """
    heads = registry.locate(registry.BUILT_IN[0]).config.alignment_heads
    chunk = Chunk(truth.text)
    sequence = Sequence(RequestState("", 0, alignment_heads=heads), 0, chunk, voice, Sampling())
    sequence.tokens = truth.codes
    sequence.prompt = Prompt(text_tokens(tokenizer, truth.text), voice.speaker, voice.prompt)
    sequence.spans = align(t3, sequence, tokenizer.space)
    words = truth.text.split()
    sequence.written = [WrittenWord(word, i, i + 1) for i, word in enumerate(words)]
    if wave is None:
        return [(start * 0.04, end * 0.04) for start, end in sequence.spans]
    return [(word.start, word.end) for word in words_of(sequence, [wave])]


def errors(found: list[tuple[float, float]], truth: list[tuple[float, float]]) -> np.ndarray:
    """Absolute errors of starts and ends in seconds: [words, 2]."""
    return np.abs(np.array(found) - np.array(truth))


def report(name: str, values: np.ndarray) -> None:
    """Print median and 95th percentile of starts, ends and both, in milliseconds."""
    for what, part in (("starts", values[:, 0]), ("ends", values[:, 1]), ("both", values)):
        median, high, worst = (1000 * np.percentile(part, p) for p in (50, 95, 100))
        print(f"{name}, {what}: median {median:.0f} ms, 95 % {high:.0f} ms, worst {worst:.0f} ms")


def main(
    count: Annotated[int, typer.Option(help="How many sentences.")] = 100,
    out: Annotated[Path, typer.Option(help="Where codes and times are written.")] = RESULTS,
) -> None:
    """Print the errors of word times; write the teacher's codes and times."""
    checkpoint = registry.locate(registry.BUILT_IN[0])
    t3, tokenizer = loader.load_t3(checkpoint, torch.float32), loader.load_tokenizer(checkpoint)
    voice, teacher = VoiceLibrary(checkpoint, default_store()).voice(None), Teacher()
    truths, with_sound, without = [], [], []
    for line in (line for path in SENTENCES for line in path.read_text("utf-8").splitlines()):
        [chunk] = split(read_english(line).text)
        output = teacher.synthesize(chunk.text, speaker=Speaker())
        if output is None or output.wave is None:
            print(f"not plain words for the teacher: {line}")
            continue
        truth = truth_of(chunk.text, output, output.wave)
        wave = output.wave[: 960 * len(truth.codes)]
        truths.append(truth)
        with_sound.append(errors(timed(t3, tokenizer, voice, truth, wave), truth.words))
        without.append(errors(timed(t3, tokenizer, voice, truth, None), truth.words))
        if len(truths) == count:
            break
    print(f"{len(truths)} sentences, {sum(len(truth.words) for truth in truths)} words")
    report("40 ms grid", np.concatenate(without))
    report("with the sound", np.concatenate(with_sound))
    lines = [json.dumps(asdict(truth)) for truth in truths]
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
