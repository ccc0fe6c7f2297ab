"""Evaluates each part of pico by itself, on held-out utterances.

Responsible for comparing with the teacher's exact labels. Not responsible for speech recognition
(evaluate.py).

    python -m training.pico.parts

- t3: phone error rate of its output against the teacher's phones; its training may have had the
  same texts, as both are drawn from one pool
- flow: distance of its mel to the teacher's, in nepers, from the teacher's own codes
- vocoder: log-spectral distance of copy synthesis, in dB; F0 error; how far the source's harmonics
  are above the constant that its layers get without them, in dB; how far the harmonics of its sound
  stand out, in bands
- tokenizer: accuracy of codes and phones from audio
- voices: cosine similarity of both encoders' vectors to the speaker's target vectors
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from chatterbox_opt import Engine, Sampling
from chatterbox_opt.checkpoints import loader, registry
from chatterbox_opt.models.vocoder.model import Vocoder
from chatterbox_opt.models.vocoder.source import VOICED_THRESHOLD, source
from chatterbox_opt.models.voice_encoders import Encoders
from chatterbox_opt.voice import Voice
from chatterbox_opt.voices import library as voice_library
from training.pico import codes, teacher
from training.pico.design import PICO_CONFIG
from training.pico.harmonics import contrast
from training.pico.sound import log_spectral_difference, mel_of, voice_of, wave_of
from training.pico.utterances import HELD_OUT, Utterance, load


def phones_of(tokens: np.ndarray) -> list[int]:
    """The phones of codes, with repetitions collapsed and pauses removed."""
    both = np.stack((tokens // codes.BASE, tokens % codes.BASE), axis=1).ravel()
    runs = both[np.concatenate(([True], both[1:] != both[:-1]))]
    return [int(p) for p in runs if p > codes.LAST_PAUSE]


def t3_errors(engine: Engine, held: list[Utterance]) -> float:
    """Phone error rate of T3."""
    from rapidfuzz.distance import Levenshtein

    wrong = total = 0
    for i, one in enumerate(held):
        sampling = Sampling(seed=i, exaggeration=one.emotion)
        tokens = engine.speech_tokens(one.text, None, sampling).numpy()
        true = phones_of(one.codes.astype(int))
        wrong += Levenshtein.distance(phones_of(tokens), true)
        total += len(true)
    return wrong / total


def flow_distance(engine: Engine, held: list[Utterance]) -> float:
    """Mean log-mel distance for the second half's codes, with the first half as prompt."""
    stage, distances = loader.load_flow(engine.checkpoint, torch.float32), []
    for i, one in enumerate(held):
        voice, half = voice_of(one), len(one.codes) // 2
        prompt = Voice(
            voice.speaker,
            voice.prompt,
            voice.tokens[:, :half],
            voice.mel[:, : 2 * half],
            voice.xvector,
        )
        (mel,) = stage([voice.tokens[0, half:]], [prompt], [torch.Generator().manual_seed(i)])
        true = voice.mel[0, 2 * half :].T
        distances.append((mel[..., : true.shape[-1]] - true).abs().mean().item())
    return float(np.mean(distances))


def copies(vocoder: Vocoder, mels: list[Tensor]) -> list[Tensor]:
    """What the vocoder makes of each mel [80, F]: float32 [480 F]."""
    return [vocoder([mel], [torch.Generator().manual_seed(i)])[0] for i, mel in enumerate(mels)]


def vocoder_distance(made: list[Tensor], waves: list[Tensor]) -> float:
    """Log-spectral distance in dB (frames of 1024, both above -60 dB)."""
    distances = []
    for one, wave in zip(made, waves, strict=True):
        nepers = log_spectral_difference(one[: len(wave)], wave[: len(one)])
        distances.append(nepers.pow(2).mean(0).sqrt().mean().item())
    return 20 / math.log(10) * float(np.mean(distances))


def pitch_error(predicted: list[np.ndarray], true: list[np.ndarray]) -> float:
    """Median distance of F0 in Hz to the teacher's where both are voiced, in cents; a mean of all.

    Args:
        predicted, true: float32 [F] of each utterance; the predicted one may be longer.
    """
    cents = []
    for one, teachers in zip(predicted, true, strict=True):
        found, right = torch.from_numpy(one[: len(teachers)]), torch.from_numpy(teachers)
        voiced = (right > 40) & (found > 40)
        cents.append(1200 * (found[voiced] / right[voiced]).log2().abs().median().item())
    return float(np.mean(cents))


def source_level(merge: nn.Linear, held: list[Utterance]) -> float:
    """Energy of the source's harmonics to that of its constant, in dB, where voiced.

    Args:
        merge: see ``source``. Its bias is all that is left of it where its weights are zero.
    """
    constant = max(torch.tanh(merge.bias).square().item(), 1e-12)
    energies = []
    for i, one in enumerate(held):
        assert one.f0 is not None
        f0 = torch.from_numpy(one.f0.astype(np.float32))
        signal = source(merge, f0[f0 > VOICED_THRESHOLD][None], torch.Generator().manual_seed(i))
        energies.append(signal.var().item())
    return 10 * math.log10(float(np.mean(energies)) / constant)


def encoder_accuracy(encoders: Encoders, held: list[Utterance]) -> dict[str, float]:
    """Accuracy of the three encoders on held-out audio."""
    right, phone, voices, xvectors = [], [], [], []
    for one in held:
        assert one.speaker is not None
        voice = encoders.encode(wave_of(one).numpy(), PICO_CONFIG.t3.prompt_tokens)
        predicted = voice.tokens[0].numpy()
        true = one.codes[: len(predicted)].astype(int)
        right.append(np.mean(predicted[: len(true)] == true))
        phone.append(np.mean(predicted[: len(true)] // codes.BASE == true // codes.BASE))
        speaker = torch.from_numpy(teacher.voice_vector(one.speaker, PICO_CONFIG.t3.speaker))
        xvector = torch.from_numpy(teacher.x_vector(one.speaker, PICO_CONFIG.flow.xvector))
        voices.append(F.cosine_similarity(voice.speaker[0], speaker, dim=0).item())
        xvectors.append(F.cosine_similarity(voice.xvector[0], xvector, dim=0).item())
    names = ("codes right", "phones right", "voice cosine", "x-vector cosine")
    lists = (right, phone, voices, xvectors)
    return {name: float(np.mean(values)) for name, values in zip(names, lists, strict=True)}


def contrasts(waves: Iterable[Tensor], pitches: Iterable[np.ndarray]) -> str:
    """A line of ``harmonics.contrast`` by band.

    Args:
        pitches: F0 in Hz of each wave, float32 [F]. Of the vocoder's sound it is its own: with the
            teacher's, 28 cents off, its 20th harmonic is searched a third of F0 off.
    """
    by_band = contrast(zip((wave.numpy() for wave in waves), pitches, strict=True))
    return ", ".join(f"{i} to {i + 1} kHz {value:.1f} dB" for i, value in enumerate(by_band))


def main(
    model: Annotated[str, typer.Option(help="A model's name or directory.")] = registry.BUILT_IN[0],
    count: Annotated[int, typer.Option(help="How many utterances.")] = 30,
) -> None:
    """Print the metrics of each part."""
    logging.disable(logging.WARNING)  # upstream's mel warns of every sample above 1
    held = [u for u in load("sound")[:HELD_OUT] if len(u.codes) >= 40][:count]
    with Engine.load(model, "dev", device="cpu", watermark=False) as engine:
        print(f"t3: phone error rate {t3_errors(engine, held):.1%}")
        print(f"flow: mel distance {flow_distance(engine, held):.3f} nepers")
        vocoder = loader.load_vocoder(engine.checkpoint)
        waves = [wave_of(one) for one in held]
        mels = [mel_of(wave[None])[0] for wave in waves]
        made = copies(vocoder, mels)
        own = [vocoder.pitch(mel[None])[0].numpy() for mel in mels]
        true = [np.asarray(one.f0, np.float32) for one in held]
        distance, cents = vocoder_distance(made, waves), pitch_error(own, true)
        print(f"vocoder: log-spectral distance {distance:.2f} dB, pitch error {cents:.0f} cents")
        for name, sound, f0 in (("vocoder", made, own), ("teacher", waves, true)):
            print(f"harmonics above what is between them, {name}: {contrasts(sound, f0)}")
        level = source_level(vocoder.merge, held)
        print(f"source: harmonics {level:.0f} dB above the constant")
        encoders = voice_library.load_encoders(engine.checkpoint)
        for name, value in encoder_accuracy(encoders, held).items():
            print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    typer.run(main)
