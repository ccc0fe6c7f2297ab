"""Phones and the speech codes made of them.

Responsible for the alphabet and the encoding. Not responsible for audio or text.

Chatterbox's S3 tokenizer has 6561 = 81 x 81 codes, 25 per second. Pico defines their meaning: code
81 a + b is the phone ``a`` 10 ms after the code's start and the phone ``b`` 30 ms after it. So
labels are exact and no codebook is learned. In the quantizer's terms (FSQ,
Mentzer et al. 2023) a phone is four ternary digits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

VOWELS = "AIOQWYaiuæɑɔəɛɜɪʊʌᵊɐᵻ"  # the teacher's (misaki's) alphabet: A I O W Y are diphthongs
CONSONANTS = "bdfhjklmnpstvwzðŋɡɹɾʃʒʤʧθTʔ"
PAUSES = " ,.!?;"  # space: between words; others: pauses at punctuation
SILENCE = "_"  # before the first word and after the last
STRESSES = "ˈˌ"
SAME = {  # rare symbols of the teacher's alphabet, mapped to common ones
    **dict.fromkeys("\"“”():—…", ","),
    "ɚ": "ə", "e": "ɛ", "o": "ɔ", "ɒ": "ɑ", "r": "ɹ", "x": "k", "ɫ": "l", "y": "i", "c": "k",
}  # fmt: skip
SYMBOLS = [SILENCE, *PAUSES, *VOWELS, *(f"ˈ{v}" for v in VOWELS), *CONSONANTS]
INDEX = {symbol: i for i, symbol in enumerate(SYMBOLS)}
LAST_PAUSE = len(PAUSES)  # silence and pauses come first, then vowels, without and with stress
FIRST_CONSONANT = INDEX[CONSONANTS[0]]
BASE = 81
FRAME = 0.0125  # seconds of the teacher's frames
FRAMES_PER_CODE = 3.2
assert len(SYMBOLS) <= BASE


def symbols_of(phonemes: str) -> list[tuple[int, int, int]]:
    """Split a teacher's phoneme string into symbols.

    Returns:
        for each symbol: its index, the index of its word, and its number of characters in the
        string (a stress mark belongs to the vowel after it).

    Raises:
        KeyError: a symbol that is not in the English alphabet.
    """
    symbols: list[tuple[int, int, int]] = []
    stress, word = "", 0
    for character in phonemes:
        if character in STRESSES:
            stress += character
            continue
        plain = SAME.get(character, character)
        word += character == " "
        stressed = "ˈ" in stress and plain in VOWELS
        symbols.append((INDEX["ˈ" + plain if stressed else plain], word, 1 + len(stress)))
        stress = ""
    return symbols


def codes_of(frames: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Codes int64 [T] of the symbols int64 [n] at the teacher's frames (12.5 ms each)."""
    count = int(len(frames) // FRAMES_PER_CODE)
    first, second = (sample_frames(frames, count, offset) for offset in (0.8, 2.4))
    return BASE * first + second


def sample_frames(
    frames: npt.NDArray[np.int64], count: int, offset: float = 0.8
) -> npt.NDArray[np.int64]:
    """Sample ``frames`` at ``count`` codes' starts plus ``offset`` frames."""
    indices = (np.arange(count) * FRAMES_PER_CODE + offset).astype(int)
    return frames[np.clip(indices, 0, len(frames) - 1)]


def digits(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The eight ternary digits of each code, lowest first: int64 [T, 8]."""
    return codes[:, None] // 3 ** np.arange(8) % 3
