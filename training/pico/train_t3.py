"""Trains pico's T3: text to codes.

Responsible for teacher forcing over padded batches. Not responsible for audio.

    python -m training.pico.train_t3 --minutes 100

Resumes from its own checkpoint. Three things let so small a decoder learn in so short a time: a
code's embedding and head row are factorized, with terms shared by all codes of the same phone; one
attention head is supervised with the current word (guided attention, Tachibana et al. 2018); and
up to a tenth of a text's input codes are corrupted (a twentieth on average), so that the model
recovers from sampling errors. A z-loss (PaLM 2022) pulls the softmax normalizer to 1: logits are
then log-probabilities, and the repetition penalty, which scales logits, hardly changes confident
predictions.
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
from chatterbox_opt.models.t3.llama import LlamaT3, rope_frequencies
from training.pico import teacher
from training.pico.codes import BASE, FRAMES_PER_CODE
from training.pico.design import PICO_CONFIG, tokenizer
from training.pico.teacher import Speaker
from training.pico.training import train
from training.pico.utterances import WORK, Utterance, in_rhythm, load

T3_CONFIG = PICO_CONFIG.t3
GUIDED_LAYER = 1  # the layer whose first head has guided attention
PREFIX = T3_CONFIG.resampler_queries + 2  # speaker, resampled prompt, emotion
POSITIONS = 3000  # per batch, padding included
UNCOND_SHARE, CORRUPT_SHARE = 0.1, 0.1  # of sequences without text (CFG), most corrupted codes


@dataclass(frozen=True, slots=True)
class Text:
    """A text to learn from, without a speaker.

    Attributes:
        ids: with start and stop.
        words: of the ids.
        frames: see ``Utterance``.
    """

    ids: np.ndarray
    words: np.ndarray
    frames: np.ndarray
    emotion: float

    def length_with(self, codes: int) -> int:
        """Positions of a sequence with so many codes."""
        return PREFIX + len(self.ids) + 2 + codes

    @property
    def length(self) -> int:
        """Positions of its sequence in the teacher's rhythm."""
        return self.length_with(round(self.frames.shape[1] / FRAMES_PER_CODE))


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: a text, and its codes and their words in a speaker's rhythm."""

    text: Text
    speaker: Speaker
    codes: np.ndarray
    words: np.ndarray

    @classmethod
    def of(cls, text: Text, speaker: Speaker) -> Example:
        return cls(text, speaker, *in_rhythm(text.frames, speaker))

    @property
    def length(self) -> int:
        return self.text.length_with(len(self.codes))


def text_of(one: Utterance, text_tokenizer: Tokenizer) -> Text | None:
    """Tokenize as upstream's EnTokenizer does; None if a character is unknown or it is too long."""
    assert one.frames is not None
    encoded = text_tokenizer.encode(one.text.replace(" ", "[SPACE]"))
    tokens = encoded.tokens
    if "[UNK]" in tokens or len(encoded.ids) + 2 > T3_CONFIG.text_positions:
        return None
    words = np.cumsum([token == "[SPACE]" for token in tokens])
    ids = np.array([T3_CONFIG.start_text, *encoded.ids, T3_CONFIG.stop_text])
    words = np.array([0, *words, words[-1]])
    return Text(ids, words, one.frames, one.emotion)


class FactorizedT3(nn.Module):
    """T3 with per-phone terms added to its embedding and head; ``fold`` merges them.

    English uses a third of all codes. The other codes are one softmax class with the probability of
    their sum, and get equal head rows: the same loss at a third of the cost.
    """

    used: Tensor

    def __init__(self, used: Tensor) -> None:
        """Initialize.

        Args:
            used: int64 [n], ascending ids that occur, the stop code included.
        """
        super().__init__()
        self.register_buffer("used", used)
        self.rest = nn.Parameter(torch.randn(1, T3_CONFIG.width) * 0.005)
        self.t3 = LlamaT3(T3_CONFIG)
        self.t3.frequencies = rope_frequencies(T3_CONFIG)
        for table in (self.t3.text_emb, self.t3.text_pos, self.t3.speech_pos):
            nn.init.normal_(table.weight, std=0.05)
        nn.init.normal_(self.t3.speech_emb.weight, std=0.01)
        nn.init.normal_(self.t3.head.weight, std=0.005)
        nn.init.normal_(self.t3.resampler.queries, std=0.1)
        for block in self.t3.blocks:
            for linear in (block.out, block.down):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * T3_CONFIG.layers))
        self.shared = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(BASE, T3_CONFIG.width) * 0.05)
                for name in ("embedding_first", "embedding_second", "head_first", "head_second")
            }
        )

    def _sums(self, kind: str) -> Tensor:
        first, second = self.shared[f"{kind}_first"], self.shared[f"{kind}_second"]
        sums = (first[:, None] + second[None]).flatten(0, 1)
        return F.pad(sums, (0, 0, 0, T3_CONFIG.speech_vocab - SPEECH_TOKENS))

    def embedding(self) -> Tensor:
        return self.t3.speech_emb.weight + self._sums("embedding")

    def head(self) -> Tensor:
        """Head rows [n + 1, width]: the used codes, then the rest class."""
        rows = self.t3.head.weight + self._sums("head")
        return torch.cat((rows[self.used], self.rest))

    def classes(self, codes: Tensor) -> Tensor:
        """Map codes to rows of ``head``; unused codes to the rest class."""
        rows = torch.searchsorted(self.used, codes).clamp(max=len(self.used) - 1)
        return torch.where(self.used[rows] == codes, rows, len(self.used))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [n, used + 1]; the last is the log-sum-exp over the rest."""
        logits = F.linear(hidden, self.head()).float()
        rest = math.log(T3_CONFIG.speech_vocab - len(self.used))
        return logits + F.pad(logits.new_zeros(len(self.used)), (0, 1), value=rest)

    def fold(self) -> LlamaT3:
        """A plain T3 with the per-phone terms merged into its tables."""
        plain = LlamaT3(T3_CONFIG)
        state = self.t3.state_dict()
        head = self.rest.repeat(T3_CONFIG.speech_vocab, 1)
        head[self.used] = self.head()[:-1]
        # unused codes are never inputs: zeros compress well
        is_used = torch.zeros(T3_CONFIG.speech_vocab, 1)
        is_used[self.used] = is_used[T3_CONFIG.start_speech] = 1
        state["speech_emb.weight"], state["head.weight"] = self.embedding() * is_used, head
        plain.load_state_dict({name: tensor.detach().float() for name, tensor in state.items()})
        return plain

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states [n, width] at positions with a target, and the guided attention loss."""
        t3, rows, length = self.t3, batch.rows, batch.length
        table = self.embedding()
        prompt = table[batch.prompts] + t3.speech_pos.weight[: batch.prompts.shape[1]]
        speaker = t3.speaker(batch.speakers)[:, None]
        emotion = t3.emotion(batch.emotions[:, None, None])
        conditioning = torch.cat((speaker, t3.resampler(prompt), emotion), dim=1)
        text = t3.text_emb(batch.text) * batch.text_mask[:, None] + t3.text_pos(batch.text_position)
        speech = table[batch.speech] + t3.speech_pos(batch.speech_position)
        x = torch.zeros(rows * length, T3_CONFIG.width)
        prefix_index = torch.arange(rows)[:, None] * length + torch.arange(PREFIX)
        x = x.index_copy(0, prefix_index.flatten(), conditioning.flatten(0, 1).float())
        x = x.index_copy(0, batch.text_index, text.float())
        x = x.index_copy(0, batch.speech_index, speech.float()).view(rows, length, -1)
        rope, guide = t3.rope(torch.arange(length)), x.new_zeros(())
        for i, block in enumerate(t3.blocks):
            q, k, v = block.project_qkv(x, rope)
            q, k = q.to(v.dtype), k.to(v.dtype)
            if i == GUIDED_LAYER:
                guide = batch.guide(q[:, 0], k[:, 0])
            x = block.out_and_ffn(x, causal_attention(q, k, v))
        return t3.norm(x.flatten(0, 1)[batch.target_index]), guide


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to what is not behind: [rows, heads, length, head_dim], as q, k and v.

    By plain products: on a CPU, PyTorch's fused kernel takes two to four times as long for so short
    sequences, most of it backward.
    """
    future = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype).triu(1)
    with torch.autocast("cpu", enabled=False):
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
        return (scores + future).softmax(-1) @ v


class Batch:
    """A batch of sequences, right-padded, as flat indices into [rows * length]."""

    def __init__(self, examples: list[Example], rng: np.random.Generator, *, noisy: bool) -> None:
        """Join sequences.

        Args:
            noisy: corrupt some codes, and leave some texts out.
        """
        self.rows, self.length = len(examples), max(e.length for e in examples)
        uncond = rng.random(self.rows) < (UNCOND_SHARE if noisy else 0)
        text: dict[str, list[Any]] = {n: [] for n in ("id", "position", "mask", "index", "word")}
        speech: dict[str, list[Any]] = {
            n: [] for n in ("id", "position", "index", "target", "word")
        }
        for row, e in enumerate(examples):
            n, m, base = len(e.text.ids), len(e.codes), row * self.length + PREFIX
            inputs = e.codes.copy()
            if noisy:
                corrupt = rng.random(m) < CORRUPT_SHARE * rng.random()
                inputs[corrupt] = _corrupt(e.codes, corrupt, rng)
            text["id"].append(e.text.ids)
            text["position"].append(np.arange(n))
            text["mask"].append(np.full(n, not uncond[row]))
            text["index"].append(base + np.arange(n))
            # two start codes, then all codes; the second start and every code have a target
            start = [T3_CONFIG.start_speech] * 2
            speech["id"].append(np.concatenate((start, inputs)))
            speech["position"].append(np.concatenate(([0], np.arange(m + 1))))
            speech["index"].append(base + n + np.arange(m + 2))
            speech["target"].append(np.concatenate((e.codes, [T3_CONFIG.stop_speech])))
        self.text = _join(text["id"])
        self.text_position, self.text_index = _join(text["position"]), _join(text["index"])
        self.text_mask = _join(text["mask"]).float()
        self.speech, self.speech_position = _join(speech["id"]), _join(speech["position"])
        self.speech_index = _join(speech["index"])
        self.target_index = torch.cat([_join([index[1:]]) for index in speech["index"]])
        self.targets = _join(speech["target"])
        self.emotions = torch.tensor([e.text.emotion for e in examples], dtype=torch.float32)
        speakers = [teacher.voice_vector(e.speaker, T3_CONFIG.speaker) for e in examples]
        self.speakers = torch.from_numpy(np.stack(speakers))
        # the speaker's rhythm in another text: its own codes would leak it
        others = zip([*examples[1:], examples[0]], examples, strict=True)
        prompts = [_prompt(in_rhythm(o.text.frames, e.speaker)[0], rng) for o, e in others]
        self.prompts = torch.from_numpy(np.stack(prompts))
        self._examples = [(i, e) for i, e in enumerate(examples) if not uncond[i]]

    def guide(self, q: Tensor, k: Tensor) -> Tensor:
        """Mean -log of the attention mass from codes to their word.

        Args:
            q, k: [rows, length, head_dim].
        """
        scores = (q @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
        future = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
        attention = scores.masked_fill(future, -torch.inf).softmax(-1)
        mass = []
        for row, e in self._examples:
            n, m = len(e.text.ids), len(e.codes)
            first = PREFIX + n + 1  # the second start code predicts the first code
            wanted = torch.from_numpy(np.asarray(e.words)[:, None] == e.text.words[None])
            part = attention[row, first : first + m, PREFIX : PREFIX + n]
            mass.append((part * wanted).sum(-1))
        return -(torch.cat(mass) + 1e-4).log().mean() if mass else scores.new_zeros(())


def _join(parts: list[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _corrupt(codes: np.ndarray, where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replacement codes: half are another code of the utterance, half have one phone replaced."""
    count = int(where.sum())
    other = codes[rng.integers(len(codes), size=count)]
    phone = codes[rng.integers(len(codes), size=count)] // BASE
    mixed = codes[where] // BASE * BASE + phone
    return np.where(rng.random(count) < 0.5, other, mixed)


def _prompt(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Prompt codes from a random position of another utterance, wrapping around."""
    return codes[(rng.integers(len(codes)) + np.arange(T3_CONFIG.prompt_tokens)) % len(codes)]


def groups(texts: list[Text], rng: np.random.Generator) -> list[list[Text]]:
    """One epoch: shuffled batches of similar lengths, about ``POSITIONS`` each at most."""
    order = rng.permutation(len(texts))
    batches: list[list[Text]] = []
    for start in range(0, len(order), 2048):
        pool = sorted((texts[i] for i in order[start : start + 2048]), key=lambda e: e.length)
        group: list[Text] = []
        for text in pool:
            if group and text.length * (len(group) + 1) > POSITIONS:
                batches.append(group)
                group = []
            group.append(text)
        batches.append(group)
    return [batches[i] for i in rng.permutation(len(batches))]


def losses(model: FactorizedT3, batch: Batch) -> dict[str, Tensor]:
    """Cross entropy, guided attention loss, z-loss, and top-1 accuracy."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, guide = model(batch)
        logits = model.logits(hidden)
    normalizer, targets = logits.logsumexp(-1), model.classes(batch.targets)
    entropy = (normalizer - logits.gather(1, targets[:, None])[:, 0]).mean()
    right = (logits.detach().argmax(-1) == targets).float().mean()
    z = normalizer.pow(2).mean()
    loss = entropy + 0.3 * guide + 0.01 * z
    return {"loss": loss, "entropy": entropy, "guide": guide, "z": z, "right": right}


def main(
    minutes: Annotated[
        float, typer.Option(help="Total training time of one core, earlier runs included.")
    ],
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    out: Annotated[Path, typer.Option(help="Work folder.")] = WORK,
) -> None:
    """Train and save DIR/t3.pt."""
    torch.manual_seed(0)
    text_tokenizer = Tokenizer.from_str(json.dumps(tokenizer()))
    texts = [text for u in load("codes", out) if (text := text_of(u, text_tokenizer)) is not None]
    model = FactorizedT3(checkpoint_codes(out) if (out / "t3.pt").exists() else used_codes(texts))
    print(sum(p.numel() for p in model.t3.parameters()), "parameters", len(texts), "texts")
    queue: list[list[Text]] = []

    def loss_of(rng: np.random.Generator, _: float) -> dict[str, Tensor]:
        if not queue:
            queue.extend(groups(texts, rng))
        examples = [Example.of(text, teacher.draw_speaker(rng)) for text in queue.pop()]
        return losses(model, Batch(examples, rng, noisy=True))

    inner = [p for p in model.t3.blocks.parameters() if p.dim() == 2]
    train("t3", model, loss_of, minutes=minutes, rate=rate, out=out, inner=inner)


def checkpoint_codes(out: Path) -> Tensor:
    """Used codes of a checkpoint: the texts may have changed since, its head rows have not."""
    used: Tensor = torch.load(out / "t3.pt", weights_only=True, map_location="cpu")["model"]["used"]
    return used


def used_codes(texts: list[Text]) -> Tensor:
    """Ids that occur more than twice, each text with one speaker, and the stop code: int64 [n],
    ascending."""
    rng = np.random.default_rng(0)
    all_ = [in_rhythm(text.frames, teacher.draw_speaker(rng))[0] for text in texts]
    ids, times = np.unique(np.concatenate(all_), return_counts=True)
    return torch.from_numpy(np.append(ids[times > 2], T3_CONFIG.stop_speech))


if __name__ == "__main__":
    typer.run(main)
