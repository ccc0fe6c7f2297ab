"""The teacher: hibari-tts (Apache-2.0), whose durations and pitch are known exactly.

Responsible for the teacher's network and signal processing. Not responsible for the student.

The teacher has one voice. Other speakers are made by scaling its pitch, stretching its spectral
envelope (the vocal tract length) and adding breath noise before its own synthesis. Each has a
rhythm too, which follows from these three: a pace, and how long the last syllable before a pause
is. None of them is a real person.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.pico import codes

# of hibari-tts 0.2.1's network, pinned because the publisher is little known
SHA256 = "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8"
DURATIONS = "/Clip_output_0"  # tensor in the teacher's graph: 25 ms units for each phoneme
LEAD = 10  # frames of silence before the first word
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LOW, HIGH = np.array([-1.0, 0.84, -0.4]), np.array([0.5, 1.14, 0.8])  # bounds of a speaker


@dataclass(frozen=True, slots=True)
class Speaker:
    """Differences of a pseudo-speaker from the teacher's voice.

    Attributes:
        pitch: octaves.
        tract: stretch of the spectral envelope; below 1 is a longer vocal tract.
        breath: gain of the noise, in nepers.
    """

    pitch: float = 0.0
    tract: float = 1.0
    breath: float = 0.0

    def vector(self) -> Floats:
        """The three parameters, normalized to [-1, 1]."""
        values = np.array([self.pitch, self.tract, self.breath])
        return ((values - LOW) / (HIGH - LOW) * 2 - 1).astype(np.float32)

    @property
    def pace(self) -> float:
        """Speed in proportion to the teacher's: long tracts are slow. 0.84 to 1.19."""
        pitch, tract, _ = self.vector()
        return float(np.exp(0.14 * tract + 0.03 * pitch))

    @property
    def final(self) -> float:
        """How much longer the last syllable before a pause is than the teacher's. 0.9 to 1.7."""
        pitch, tract, breath = self.vector()
        return float(1.3 + 0.25 * pitch - 0.1 * tract + 0.05 * breath)


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """Draw a speaker within the bounds; low pitch correlates with a long tract, as in people."""
    pitch = rng.uniform(LOW[0], HIGH[0])
    tract = np.clip(1.02 + 0.14 * pitch + rng.normal(0, 0.05), LOW[1], HIGH[1])
    breath = np.clip(rng.normal(0, 0.3), LOW[2], HIGH[2])
    return Speaker(float(pitch), float(tract), float(breath))


def rhythm(symbols: Ints, speaker: Speaker) -> Ints:
    """The speaker's rhythm: which of the teacher's frames is at each of the speaker's.

    Args:
        symbols: int64 [n], see ``TeacherOutput``.

    Returns:
        int64 [m], ascending indices below n; some frames occur twice, or not at all.
    """
    lengths = np.full(len(symbols), 1 / speaker.pace)
    lengths[_final_syllables(symbols)] *= speaker.final
    ends = np.cumsum(lengths)
    middles = np.arange(max(1, round(float(ends[-1])))) + 0.5
    return np.minimum(np.searchsorted(ends, middles), len(symbols) - 1)


def _final_syllables(symbols: Ints) -> npt.NDArray[np.bool_]:
    """Which frames are of a vowel, or after it, with no other vowel before the next pause."""
    is_pause = symbols <= codes.LAST_PAUSE
    is_pause &= symbols != codes.INDEX[" "]
    is_vowel = (symbols > codes.LAST_PAUSE) & (symbols < codes.FIRST_CONSONANT)
    found, inside, vowel = np.zeros(len(symbols), bool), True, -1
    for i in range(len(symbols) - 1, -1, -1):  # from the end
        if is_pause[i]:
            inside, vowel = True, -1
        elif inside:
            if vowel >= 0 and symbols[i] != vowel:
                inside = False
            else:
                found[i] = True
                vowel = int(symbols[i]) if is_vowel[i] else -1
    return found


def embedding(speaker: Speaker, size: int, *, seed: int, positive: bool) -> Floats:
    """Target vector of a speaker encoder: random Fourier features of the speaker.

    A fixed smooth map (Rahimi & Recht 2007), so that pico's parts can be trained independently,
    and similar speakers have similar vectors.

    Args:
        size: dimensions.
        seed: of the map, one for each encoder.
        positive: clip at zero and normalize to unit length, as the voice encoder does.
    """
    rng = np.random.default_rng(seed)
    weights, phases = rng.normal(0, 1.2, (3, size)), rng.uniform(0, 2 * np.pi, size)
    values = np.sqrt(2) * np.cos(speaker.vector() @ weights + phases)
    if positive:
        values = np.maximum(values, 0)
        values = values / np.linalg.norm(values)
    return values.astype(np.float32)


def voice_vector(speaker: Speaker, size: int) -> Floats:
    """Target of the voice encoder (T3's speaker): [size], unit length, non-negative."""
    return embedding(speaker, size, seed=1, positive=True)


def x_vector(speaker: Speaker, size: int) -> Floats:
    """Target of CAMPPlus (the flow's speaker): [size], zero mean, unit variance over speakers."""
    return embedding(speaker, size, seed=2, positive=False)


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """Output of the teacher for one text.

    Attributes:
        symbols: int64 [n], index into codes.SYMBOLS of each 12.5 ms frame.
        words: int64 [n], index of the word that each frame belongs to.
        wave: float32 [300 n] at 24 kHz; None when only durations were computed.
        f0: float32 [n] in Hz, 0 where unvoiced; None if ``wave`` is None.
    """

    symbols: Ints
    words: Ints
    wave: Floats | None = None
    f0: Floats | None = None


class Teacher:
    """Text to phones with durations, and to audio."""

    def __init__(self) -> None:
        import onnx
        import onnx.utils
        import onnxruntime
        from hibari import Hibari

        self._hibari: Any = Hibari()
        content = Path(self._hibari.model_path).read_bytes()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise ValueError(
                "the teacher is not hibari-tts 0.2.1: it would produce different training data"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "durations.onnx")
            source = self._hibari.model_path
            onnx.utils.extract_model(source, path, ["ids", "speed"], [DURATIONS], check_model=False)
            self._durations = onnxruntime.InferenceSession(path, options)
            graph = onnx.load(source)
            value = onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None)
            graph.graph.output.append(value)
            path = str(Path(folder) / "all.onnx")
            onnx.save(graph, path)
            self._all = onnxruntime.InferenceSession(path, options)

    def phonemes(self, text: str) -> list[str] | None:
        """Phoneme strings, one per sentence; None if words and phonemes cannot be aligned."""
        sentences: list[str] = self._hibari.phonemize(text)
        words = sum(len(sentence.split(" ")) for sentence in sentences)
        return sentences if words == len(text.split(" ")) else None

    def synthesize(
        self,
        text: str,
        speed: float = 1.0,
        speaker: Speaker | None = None,
        rng: np.random.Generator | None = None,
    ) -> TeacherOutput | None:
        """Synthesize a text of one or more sentences.

        Args:
            text: normalized, words separated by single spaces.
            speed: above 1 is faster.
            speaker: None: durations only, eight times as fast.
            rng: for the noise.

        Returns:
            None if the text is not plain English words.
        """
        sentences = self.phonemes(text)
        if sentences is None:
            return None
        rng = rng or np.random.default_rng(0)
        parts, offset = [], 0
        for phonemes in sentences:
            try:
                output = self._sentence(phonemes, speed, speaker, rng)
            except KeyError:
                return None
            if output is None:
                return None
            parts.append((output, offset))
            offset += len(phonemes.split(" "))
        waves = [p.wave for p, _ in parts if p.wave is not None]
        pitches = [p.f0 for p, _ in parts if p.f0 is not None]
        return TeacherOutput(
            np.concatenate([p.symbols for p, _ in parts]),
            np.concatenate([p.words + start for p, start in parts]),
            np.concatenate(waves) if waves else None,
            np.concatenate(pitches) if pitches else None,
        )

    def _sentence(
        self, phonemes: str, speed: float, speaker: Speaker | None, rng: np.random.Generator
    ) -> TeacherOutput | None:
        ids = self._hibari.ids(phonemes)
        if len(ids) != len(phonemes) + 2:
            return None
        feed = {"ids": np.array([ids], np.int64), "speed": np.array([speed], np.float32)}
        if speaker is None:
            symbols, words = _expand(phonemes, self._durations.run(None, feed)[0].ravel())
            cut = _leading_silence(symbols)
            return TeacherOutput(symbols[cut:], words[cut:])
        *outputs, units = self._all.run(None, feed)
        symbols, words = _expand(phonemes, units.ravel())
        order = rhythm(symbols, speaker)
        symbols, words = symbols[order], words[order]
        cut = _leading_silence(symbols)
        lh, theta, ln, lr, phi, f0 = (output[0][..., order] for output in outputs)
        lh, ln, lr = (_stretch(x, speaker.tract) for x in (lh, ln + speaker.breath, lr))
        f0 = (f0 * 2.0**speaker.pitch).astype(np.float32)
        from hibari import dsp

        wave = dsp.synth(lh, theta, ln, lr, phi, f0, rng)
        return TeacherOutput(symbols[cut:], words[cut:], wave[dsp.HOP * cut :], f0[cut:])


def _leading_silence(symbols: Ints) -> int:
    """Frames of silence to cut at a sentence's start; the teacher makes up to half a second."""
    first = int(np.argmax(symbols != codes.INDEX[codes.SILENCE]))
    return max(0, first - LEAD)


def _expand(phonemes: str, units: Floats) -> tuple[Ints, Ints]:
    frames = (2 * units.astype(int)).tolist()  # a unit of 25 ms is two frames
    parsed = codes.symbols_of(phonemes)
    symbols, words, index = [codes.INDEX[codes.SILENCE]] * frames[0], [0] * frames[0], 1
    for symbol, word, width in parsed:
        length = sum(frames[index : index + width])
        symbols += [symbol] * length
        words += [word] * length
        index += width
    symbols += [codes.INDEX[codes.SILENCE]] * frames[index]
    words += [words[-1]] * frames[index]
    return np.array(symbols), np.array(words)


def _stretch(spectrum: Floats, factor: float) -> Floats:
    """Scale the frequency axis of [bins, frames]: frequency f moves to factor * f."""
    source = np.clip(np.arange(len(spectrum)) / factor, 0, len(spectrum) - 1)
    low = source.astype(int)
    high = np.minimum(low + 1, len(spectrum) - 1)
    weight = (source - low)[:, None]
    return (spectrum[low] * (1 - weight) + spectrum[high] * weight).astype(np.float32)
