"""Trains pico's T3: text to codes.

Knows the decoder's parts and how to run them over whole utterances. Knows nothing of sound.

    python -m training.pico.train_t3 --minutes 100

Resumes from its own checkpoint. Three things make so small a decoder learn to read in so short a
time: a code's embedding and its row of the head start as sums of what its two phones share with
other codes; one attention head is shown which word is being said (guided attention, Tachibana et
al. 2018); and a tenth of the input codes are wrong, so that a slip when speaking is not the end.
The logits' normaliser is pulled to 1 (z-loss, PaLM 2022): they are log-probabilities, and the
repetition penalty, which scales logits, hardly touches what the model is sure of.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from tokenizers import Tokenizer
from torch import Tensor, nn

from chatterbox_opt.config.model_config import SPEECH_TOKENS
from chatterbox_opt.models.t3.model import T3, rope_frequencies
from training.pico import teacher
from training.pico.codes import BASE
from training.pico.design import SHAPES, tokenizer
from training.pico.training import train
from training.pico.utterances import WORK, Utterance, load

SHAPE = SHAPES.t3
GUIDED = 1  # the layer whose first head is shown the word
PREFIX = SHAPE.resampler_queries + 2  # speaker, resampled prompt, emotion
POSITIONS = 3000  # of one batch, padding included
BLANK, CORRUPT = 0.1, 0.1  # shares of utterances without text (CFG) and of codes made wrong


@dataclass(frozen=True, slots=True)
class Example:
    """What one utterance is to T3: text ids with edges, the word of each id, codes, their words."""

    ids: np.ndarray
    id_words: np.ndarray
    codes: np.ndarray
    words: np.ndarray
    emotion: float

    @property
    def length(self) -> int:
        return PREFIX + len(self.ids) + 2 + len(self.codes)


def example(one: Utterance, reader: Tokenizer) -> Example | None:
    """Encode the text as upstream's EnTokenizer does; None if it has a character pico has not."""
    encoded = reader.encode(one.text.replace(" ", "[SPACE]"))
    tokens = encoded.tokens
    if "[UNK]" in tokens or len(encoded.ids) + 2 > SHAPE.text_positions:
        return None
    words = np.cumsum([token == "[SPACE]" for token in tokens])
    ids = np.array([SHAPE.start_text, *encoded.ids, SHAPE.stop_text])
    words = np.array([0, *words, words[-1]])
    return Example(ids, words, one.codes.astype(np.int64), one.words, one.emotion)


class Reader(nn.Module):
    """T3 with what phones share added to its tables; ``folded`` gives plain tables again.

    English has a third of all codes. The others are one class of the softmax, as likely as all of
    them together, and get equal rows of the head: the same arithmetic at a third of the cost.
    """

    used: Tensor

    def __init__(self, used: Tensor) -> None:
        """``used``: int64 [n], the ids that occur, stop code included."""
        super().__init__()
        self.register_buffer("used", used)
        self.rest = nn.Parameter(torch.randn(1, SHAPE.width) * 0.005)
        self.t3 = T3(SHAPE)
        self.t3.frequencies = rope_frequencies(SHAPE)
        for table in (self.t3.text_emb, self.t3.text_pos, self.t3.speech_pos):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.normal_(self.t3.speech_emb.weight, std=0.01)
        nn.init.normal_(self.t3.head.weight, std=0.005)
        nn.init.normal_(self.t3.resampler.queries, std=0.1)
        for block in self.t3.blocks:
            for linear in (block.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * SHAPE.layers))
        self.shared = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(BASE, SHAPE.width) * 0.05)
                for name in ("embedding_first", "embedding_second", "head_first", "head_second")
            }
        )

    def _sums(self, kind: str) -> Tensor:
        first, second = self.shared[f"{kind}_first"], self.shared[f"{kind}_second"]
        sums = (first[:, None] + second[None]).flatten(0, 1)
        return F.pad(sums, (0, 0, 0, SHAPE.speech_vocab - SPEECH_TOKENS))

    def embedding(self) -> Tensor:
        return self.t3.speech_emb.weight + self._sums("embedding")

    def head(self) -> Tensor:
        """[n + 1, width]: the used codes, and the rest."""
        whole = self.t3.head.weight + self._sums("head")
        return torch.cat((whole[self.used], self.rest))

    def classes(self, codes: Tensor) -> Tensor:
        """Codes to rows of ``head``; a code that training never saw is the rest."""
        places = torch.searchsorted(self.used, codes).clamp(max=len(self.used) - 1)
        return torch.where(self.used[places] == codes, places, len(self.used))

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, used + 1] in float32; the last is the logarithm of the sum over the rest."""
        logits = F.linear(hidden, self.head()).float()
        rest = math.log(SHAPE.speech_vocab - len(self.used))
        return logits + F.pad(logits.new_zeros(len(self.used)), (0, 1), value=rest)

    def folded(self) -> T3:
        """The same decoder with the sums written into its tables."""
        plain = T3(SHAPE)
        state = self.t3.state_dict()
        head = self.rest.repeat(SHAPE.speech_vocab, 1)
        head[self.used] = self.head()[:-1]
        said = torch.zeros(
            SHAPE.speech_vocab, 1
        )  # codes never said are never read: zeros pack well
        said[self.used] = said[SHAPE.start_speech] = 1
        state["speech_emb.weight"], state["head.weight"] = self.embedding() * said, head
        plain.load_state_dict({name: tensor.detach().float() for name, tensor in state.items()})
        return plain

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states [n, width] at the positions that have a target, and the guide's loss."""
        t3, rows, length = self.t3, batch.rows, batch.length
        table = self.embedding()
        prompt = table[batch.prompts] + t3.speech_pos.weight[: batch.prompts.shape[1]]
        speaker = t3.speaker(batch.speakers)[:, None]
        emotion = t3.emotion(batch.emotions[:, None, None])
        conditioning = torch.cat((speaker, t3.resampler(prompt), emotion), dim=1)
        text = t3.text_emb(batch.text) * batch.text_kept[:, None] + t3.text_pos(batch.text_place)
        speech = table[batch.speech] + t3.speech_pos(batch.speech_place)
        x = torch.zeros(rows * length, SHAPE.width)
        places = torch.arange(rows)[:, None] * length + torch.arange(PREFIX)
        x = x.index_copy(0, places.flatten(), conditioning.flatten(0, 1).float())
        x = x.index_copy(0, batch.text_at, text.float())
        x = x.index_copy(0, batch.speech_at, speech.float()).view(rows, length, -1)
        rope, guide = t3.rope(torch.arange(length)), x.new_zeros(())
        for i, block in enumerate(t3.blocks):
            q, k, v = block.project_qkv(x, rope)
            q, k = q.to(v.dtype), k.to(v.dtype)
            if i == GUIDED:
                guide = batch.guide(q[:, 0], k[:, 0])
            x = block.out_and_ffn(x, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return t3.norm(x.flatten(0, 1)[batch.target_at]), guide


class Batch:
    """Utterances side by side, each from its first position on; what is behind them is padding."""

    def __init__(self, examples: list[Example], rng: np.random.Generator, *, noisy: bool) -> None:
        self.rows, self.length = len(examples), max(e.length for e in examples)
        blank = rng.random(self.rows) < (BLANK if noisy else 0)
        text: dict[str, list[Any]] = {n: [] for n in ("id", "place", "kept", "at", "word")}
        speech: dict[str, list[Any]] = {n: [] for n in ("id", "place", "at", "to", "word")}
        for row, e in enumerate(examples):
            n, m, base = len(e.ids), len(e.codes), row * self.length + PREFIX
            said = e.codes.copy()
            if noisy:
                wrong = rng.random(m) < CORRUPT * rng.random()
                said[wrong] = _wrong(e.codes, wrong, rng)
            text["id"].append(e.ids)
            text["place"].append(np.arange(n))
            text["kept"].append(np.full(n, not blank[row]))
            text["at"].append(base + np.arange(n))
            # two start codes, then all codes; the second start and every code have a target
            start = [SHAPE.start_speech] * 2
            speech["id"].append(np.concatenate((start, said)))
            speech["place"].append(np.concatenate(([0], np.arange(m + 1))))
            speech["at"].append(base + n + np.arange(m + 2))
            speech["to"].append(np.concatenate((e.codes, [SHAPE.stop_speech])))
        self.text = _join(text["id"])
        self.text_place, self.text_at = _join(text["place"]), _join(text["at"])
        self.text_kept = _join(text["kept"]).float()
        self.speech, self.speech_place = _join(speech["id"]), _join(speech["place"])
        self.speech_at = _join(speech["at"])
        self.target_at = torch.cat([_join([at[1:]]) for at in speech["at"]])
        self.targets = _join(speech["to"])
        self.emotions = torch.tensor([e.emotion for e in examples], dtype=torch.float32)
        speakers = [teacher.voice_vector(teacher.draw_speaker(rng), SHAPE.speaker) for _ in blank]
        self.speakers = torch.from_numpy(np.stack(speakers))
        others = [*examples[1:], examples[0]]  # its own codes would tell what to say
        self.prompts = torch.from_numpy(np.stack([_prompt(e.codes, rng) for e in others]))
        self._examples = [(i, e) for i, e in enumerate(examples) if not blank[i]]

    def guide(self, q: Tensor, k: Tensor) -> Tensor:
        """Mean of -log of the attention [rows, length, head_dim] that codes pay to their word."""
        scores = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        ahead = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
        attention = scores.masked_fill(ahead, -torch.inf).softmax(-1)
        paid = []
        for row, e in self._examples:
            n, m = len(e.ids), len(e.codes)
            first = PREFIX + n + 1  # the second start code says the first code
            wanted = torch.from_numpy(np.asarray(e.words)[:, None] == e.id_words[None])
            part = attention[row, first : first + m, PREFIX : PREFIX + n]
            paid.append((part * wanted).sum(-1))
        return -(torch.cat(paid) + 1e-4).log().mean() if paid else scores.new_zeros(())


def _join(parts: list[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _wrong(said: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Wrong codes: half of them another code of the utterance, half with one phone replaced."""
    count = int(where.sum())
    other = said[rng.integers(len(said), size=count)]
    phone = said[rng.integers(len(said), size=count)] // BASE
    mixed = said[where] // BASE * BASE + phone
    return np.where(rng.random(count) < 0.5, other, mixed)


def _prompt(said: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codes for the voice's prompt, from anywhere in another utterance."""
    return said[(rng.integers(len(said)) + np.arange(SHAPE.prompt_tokens)) % len(said)]


def groups(examples: list[Example], rng: np.random.Generator) -> list[list[Example]]:
    """All examples once, like lengths together, at most ``POSITIONS`` a group, in any order."""
    order = rng.permutation(len(examples))
    made: list[list[Example]] = []
    for start in range(0, len(order), 2048):
        pool = sorted((examples[i] for i in order[start : start + 2048]), key=lambda e: e.length)
        group: list[Example] = []
        for e in pool:
            if group and e.length * (len(group) + 1) > POSITIONS:
                made.append(group)
                group = []
            group.append(e)
        made.append(group)
    return [made[i] for i in rng.permutation(len(made))]


def losses(model: Reader, batch: Batch) -> dict[str, Tensor]:
    """Cross entropy, guide, z-loss, and how often the likeliest code is right."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, guide = model(batch)
        logits = model.logits(hidden)
    normaliser, targets = logits.logsumexp(-1), model.classes(batch.targets)
    entropy = (normaliser - logits.gather(1, targets[:, None])[:, 0]).mean()
    right = (logits.detach().argmax(-1) == targets).float().mean()
    z = normaliser.pow(2).mean()
    loss = entropy + 0.3 * guide + 0.01 * z
    return {"loss": loss, "entropy": entropy, "guide": guide, "z": z, "right": right}


def main(
    minutes: Annotated[float, typer.Option(help="Of training in all, earlier runs included.")],
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    out: Annotated[Path, typer.Option(help="Folder.")] = WORK,
) -> None:
    """Train and keep DIR/t3.pt."""
    torch.manual_seed(0)
    reader = Tokenizer.from_str(json.dumps(tokenizer()))
    examples = [e for u in load("codes", out) if (e := example(u, reader)) is not None]
    model = Reader(kept_codes(out) if (out / "t3.pt").exists() else used_codes(examples))
    print(sum(p.numel() for p in model.t3.parameters()), "parameters", len(examples), "texts")
    queue: list[list[Example]] = []

    def loss_of(rng: np.random.Generator) -> dict[str, Tensor]:
        if not queue:
            queue.extend(groups(examples, rng))
        return losses(model, Batch(queue.pop(), rng, noisy=True))

    inner = [p for p in model.t3.blocks.parameters() if p.dim() == 2]
    train("t3", model, loss_of, minutes=minutes, rate=rate, out=out, inner=inner)


def kept_codes(out: Path) -> Tensor:
    """Those of a run that goes on: the texts may have changed since, its rows have not."""
    used: Tensor = torch.load(out / "t3.pt", weights_only=True, map_location="cpu")["model"]["used"]
    return used


def used_codes(examples: list[Example]) -> Tensor:
    """Ids that occur more than twice, and the stop code: int64 [n], ascending."""
    ids, times = np.unique(np.concatenate([e.codes for e in examples]), return_counts=True)
    return torch.from_numpy(np.append(ids[times > 2], SHAPE.stop_speech))


if __name__ == "__main__":
    typer.run(main)
