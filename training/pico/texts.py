"""Training texts of pico: sentences of WordNet, and sentences generated from common words.

Responsible for text sources. Not responsible for audio. Evaluation sentences (sentences/*.txt) are
excluded.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from training.pico import written

WORDNET = Path("/usr/share/wordnet")  # Debian's wordnet-base; WordNet 3.0 licence
SENTENCES = Path(__file__).parent / "sentences"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z',; -]+[.!?]?")
COMMON = 25_000  # number of most frequent words

# slots of everyday sentences; every combination is a plausible sentence
SLOTS: dict[str, str] = {
    "P": "I|you|we|they|he|she|my brother|her mother|the children|our neighbour|the doctor|"
    "everyone|nobody|Anna|John|the teacher|that man|the lady next door|your friend|somebody",
    "V": "want to|have to|need to|like to|used to|tried to|would love to|can|could|will|should|"
    "might|must|won't|can't|couldn't|didn't|don't|never|would rather",
    "D": "go home|eat breakfast|call the office|wash the dishes|wait for the bus|read the paper|"
    "buy some milk|open the window|close the door|take a walk|drive to work|write a letter|"
    "cook dinner|feed the cat|clean the kitchen|fix the car|play the piano|learn to swim|"
    "watch the game|turn off the light|answer the phone|plant a tree|paint the fence|"
    "catch the train|find my keys|carry the boxes|sing a song|tell the truth|bake a cake|"
    "pay the bill|sleep late|go shopping|visit my aunt|look at the stars|bring an umbrella|"
    "finish the work|start again|ask a question|change the subject|leave early|stay longer",
    "T": "today|tomorrow|tonight|this morning|after lunch|before dinner|next week|last night|"
    "on Monday|on Friday evening|at noon|in the afternoon|every day|right now|once a year|soon|"
    "at the weekend|in a few minutes|by six o'clock|in the summer|when it rains|all the time",
    "W": "What|When|Where|Why|How|Who|Which one",
    "Q": "Do you|Did you|Can you|Could you|Would you|Will you|Are you going to|Have you ever|"
    "Did they|Does she|Should we|May I|Is he going to|Don't you|Can't we",
    "A": "small|large|red|green|yellow|old|new|beautiful|quiet|noisy|cold|warm|heavy|broken|"
    "strange|friendly|expensive|cheap|clean|dirty|empty|wooden|bright|dark|soft|sharp|famous",
    "N": "house|garden|table|chair|street|river|mountain|bird|dog|horse|book|letter|picture|"
    "bottle|shirt|coat|hat|bridge|boat|train|station|school|church|market|shop|restaurant|"
    "kitchen|bedroom|window|clock|phone|computer|camera|radio|newspaper|ticket|suitcase|"
    "sandwich|apple|orange|potato|cheese|coffee|cup of tea|glass of water|piece of bread",
    "L": "near the station|at the end of the road|on the table|under the bridge|by the sea|"
    "behind the house|in the corner|across the street|in the middle of town|at the airport|"
    "next to the bank|on the second floor|in my bag|over there|outside the city|upstairs",
    "E": "is|was|looks|seemed|will be|isn't|wasn't|has always been|could be|used to be",
    "X": "Well,|Yes,|No,|Oh,|Of course,|Please,|Sorry,|Listen,|I think|I hope|Perhaps|Maybe|"
    "In fact,|By the way,|As you know,|Honestly,|I'm afraid|He said that|She told me that",
    "C": "and|but|because|so|although|while|before|after|if|unless|until|and then",
}
PATTERNS = [
    "P V D T.",
    "P V D.",
    "Q D T?",
    "Q D?",
    "The A N E L.",
    "The N L E A.",
    "X P V D.",
    "P V D, C P V D T.",
    "There E a A N L.",
    "X the N E very A.",
    "W did P D T?",
    "W E the A N?",
    "The N E A, C P V D.",
    "P bought a A N T.",
    "Give me the A N, please.",
    "Thank you for the A N.",
    "T, P V D C P V D.",
    "How much E the N L?",
    "Please put the A N L.",
    "P V D C the N E A.",
    "What a A N!",
    "X P V D T!",
    "I saw a A N L, C it E A.",
    "Where E the A N?",
    "It E too A to D T.",
    "P and P V D T.",
    "If P V D, P V D T.",
    "The A N and the A N E L.",
]


def held_out() -> set[str]:
    """The evaluation sentences, normalized by ``letters``."""
    lines = [line for f in sorted(SENTENCES.glob("*.txt")) for line in f.read_text().splitlines()]
    return {letters(line) for line in lines}


def letters(text: str) -> str:
    """Normalize a sentence for comparison: lower case, letters only."""
    return re.sub(r"[^a-z]+", " ", text.lower()).strip()


def wordnet() -> list[str]:
    """About a hundred thousand glosses and examples of two to sixteen words."""
    sentences: set[str] = set()
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{kind}").read_text(encoding="latin1").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            gloss = line.split("|", 1)[1]
            for quote in [*re.findall(r'"([^"]+)"', gloss), gloss.split(";")[0]]:
                text = " ".join(quote.strip().strip("`'").split())
                if _PLAIN.fullmatch(text) and 2 <= len(text.split()) <= 16 and len(text) < 100:
                    sentences.add(text if text[-1] in ".!?" else text + ".")
    return sorted(sentences)


def common_words() -> tuple[list[str], np.ndarray]:
    """Common English words and their sampling weights: the square root of their frequency."""
    import wordfreq

    by_frequency = wordfreq.top_n_list("en", COMMON)
    words = [
        w
        for w in by_frequency
        if re.fullmatch(r"[a-z]+('[a-z]+)?", w) and (len(w) > 1 or w in "ai")
    ]
    weights = np.sqrt([wordfreq.word_frequency(w, "en") for w in words])
    return words, weights / weights.sum()


def pattern_sentence(rng: np.random.Generator) -> str:
    """Generate a sentence from ``PATTERNS``."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    words = []
    for token in pattern.split(" "):
        slot = token.rstrip(",.?!")
        if slot in SLOTS and len(slot) == 1:
            choices = SLOTS[slot].split("|")
            words.append(choices[rng.integers(len(choices))] + token[len(slot) :])
        else:
            words.append(token)
    text = " ".join(words)
    return text[0].upper() + text[1:]


def word_salad(rng: np.random.Generator, words: list[str], weights: np.ndarray) -> str:
    """Random common words with some commas: pronunciation without grammar."""
    count = int(rng.integers(1, 13))
    drawn = list(rng.choice(len(words), size=count, p=weights))
    text = " ".join(words[i] + ("," if rng.random() < 0.08 else "") for i in drawn).rstrip(",")
    return text[0].upper() + text[1:] + rng.choice([".", ".", ".", "?", "!"])


def acronym_sentence(rng: np.random.Generator, words: list[str], weights: np.ndarray) -> str:
    """Random words around a run of single letters, which is how acronyms are normalized."""
    run = " ".join(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), size=int(rng.integers(2, 5))))
    before, after = (
        " ".join(words[i] for i in rng.choice(len(words), size=int(rng.integers(0, 4)), p=weights))
        for _ in range(2)
    )
    text = " ".join(part for part in (before, run, after) if part)
    return text[0].upper() + text[1:] + "."


def training(count: int, seed: int) -> list[str]:
    """Generate ``count`` texts of one to four sentences from all sources."""
    rng = np.random.default_rng(seed)
    base, (words, weights) = wordnet(), common_words()
    banned, texts = held_out(), []
    while len(texts) < count:
        parts = []
        for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.72, 0.16, 0.08, 0.04]))):
            kind = rng.random()
            if kind < 0.34:
                parts.append(base[rng.integers(len(base))])
            elif kind < 0.55:
                parts.append(word_salad(rng, words, weights))
            elif kind < 0.71:
                parts.append(pattern_sentence(rng))
            elif kind < 0.97:
                parts.append(written.sentence(rng))
            else:
                parts.append(acronym_sentence(rng, words, weights))
        if banned.isdisjoint(letters(p) for p in parts):
            texts.append(" ".join(parts))
    return texts
