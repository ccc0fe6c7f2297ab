"""Speech tokens of one utterance or of many side by side: the one loop of the t3 stage.

Knows slots, steps and when an utterance ends. Knows nothing of sound, of files, or of why
something is said.

Continuous batching: a fixed number of slots, each with its own position, knobs, history and
generator; an utterance that ends makes room at once, and a step costs nearly the same for one slot
as for many. What an utterance says does not depend on its neighbours. Everything that differs
between two steps is a tensor in a static buffer (``Slots``), so a step can be captured once and
replayed (graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from chatterbox_opt.cache import StaticCache, blocks
from chatterbox_opt.errors import NumericsError, TextError
from chatterbox_opt.sampler import NOT_FINITE, Knobs, sample
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.t3 import T3, Prompt

FREE = -1  # in ``Slots.said``: nothing is prescribed here
Forward = Callable[[Tensor, Tensor, Tensor, StaticCache, int], Tensor]  # T3.step, or a compiled one


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """What shall be said once.

    Attributes:
        prompt: text and voice.
        sampling: its knobs; the seed is in ``generator``.
        generator: on the model's device; one draw of [speech_vocab] numbers for each token.
        on_token: told at every token how many there are.
        script: ids that are said whatever is drawn, and then the stop token; empty is free speech.
            It serves to measure like with like.
    """

    prompt: Prompt
    sampling: Sampling
    generator: torch.Generator
    on_token: Callable[[int], None]
    script: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What became of an utterance.

    Attributes:
        tokens: without the stop token; ids from 6561 on are no sound.
        cut: it came to its limit without a stop token.
        error: NumericsError or TextError, or None.
    """

    utterance: Utterance
    tokens: tuple[int, ...] = ()
    cut: bool = False
    error: NumericsError | TextError | None = None


class Slots:
    """Static buffers for ``count`` utterances in work.

    Attributes:
        each: rows of one utterance: 2 with classifier-free guidance, else 1.
        token: int64 [count], drawn last and not yet run through the model.
        spoken: int64 [count], how many tokens were drawn.
        position: int64 [count], where in the cache the token goes.
        logits: [count * each, speech_vocab], of the model's last position.
        seen: bool [count, speech_vocab], the history for the repetition penalty.
        knobs: of the sampler.
        noise: float32 [count, speech_vocab], Exp(1) for the next draw.
        said: int64 [count, speech_positions], what was drawn; ahead of that the script, or FREE.
        cache: keys and values.
    """

    def __init__(self, t3: T3, count: int, each: int) -> None:
        """Allocate on the model's device; the cache grows to what the utterances need."""
        shape, device = t3.shape, t3.like.device
        self.count, self.each = count, each
        self.token, self.spoken, self.position = (
            torch.zeros(count, dtype=torch.long, device=device) for _ in range(3)
        )
        self.logits = torch.zeros(count * each, shape.speech_vocab, dtype=t3.dtype, device=device)
        self.seen = torch.zeros(count, shape.speech_vocab, dtype=torch.bool, device=device)
        self.knobs = Knobs.room(count, device)
        self.noise = torch.ones(count, shape.speech_vocab, device=device)
        self.said = torch.full(
            (count, shape.speech_positions), FREE, dtype=torch.long, device=device
        )
        self.cache = t3.new_cache(count, each, 0)

    def enter(self, slot: int, utterance: Utterance, t3: T3, surplus: int) -> int:
        """Run an utterance's prefix into a slot; return its length.

        Args:
            surplus: positions wanted behind the prefix.

        Raises:
            TextError: more text tokens than the model has positions.
        """
        prefix = t3.embed(utterance.prompt, utterance.sampling.exaggeration, self.each)
        length = prefix.shape[1]
        self.cache.reserve(length + surplus)
        row = slot * self.each
        self.logits[row : row + self.each] = t3.prefill(prefix, self.cache, row)
        self.position[slot], self.spoken[slot] = length, 0
        self.seen[slot] = False
        self.seen[slot, t3.shape.start_speech] = True
        self.knobs.set(slot, utterance.sampling)
        self.said[slot] = FREE
        if utterance.script:
            script = torch.tensor([*utterance.script, t3.shape.stop_speech])
            self.said[slot, : len(script)] = script.to(self.said.device)
        return length

    def draw(self, first: int, last: int, *, nucleus: bool) -> None:
        """Choose the next token of slots ``first`` to ``last``, tensors only.

        Args:
            nucleus: see ``sampler.truncate``.
        """
        rows = slice(first, last)
        token = sample(
            self.logits[first * self.each : last * self.each],
            self.seen[rows],
            self.knobs.slice(first, last),
            self.noise[rows],
            nucleus=nucleus,
        )
        place = self.spoken[rows][:, None]
        script = self.said[rows].gather(1, place)[:, 0]
        token = torch.where(script == FREE, token, script)
        self.said[rows].scatter_(1, place, token[:, None])
        token = token.clamp(min=0)  # NOT_FINITE is no row of a table
        self.token[rows].copy_(token)
        self.seen[rows].scatter_(1, token[:, None], value=True)
        # a slot that ended may be stepped a little further: it must not leave its tables
        self.spoken[rows].add_(1).clamp_(max=self.said.shape[1] - 1)

    def latest(self, slots: int, count: int) -> list[list[int]]:
        """The last ``count`` tokens of each of the first ``slots`` slots, read by the host."""
        back = torch.arange(-count, 0, device=self.said.device)
        places = (self.spoken[:slots, None] + back).clamp(min=0)
        found: list[list[int]] = self.said[:slots].gather(1, places).tolist()
        return found

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another."""
        for kept in (self.token, self.spoken, self.position, self.seen, self.said, self.noise):
            kept[target] = kept[source]
        self.knobs.values[target] = self.knobs.values[source]
        here, there = (slice(i * self.each, (i + 1) * self.each) for i in (source, target))
        self.logits[there] = self.logits[here]
        self.cache.move(source, target)


class Step(Protocol):
    """Token in, next token out, for the first ``count`` slots over ``span`` positions."""

    def __call__(self, slots: Slots, count: int, span: int, *, nucleus: bool) -> None:
        """Change the slots' buffers."""
        ...


def stepping(forward: Forward) -> Step:
    """The step around the model's ``forward``.

    The whole of it is tensors in static buffers: nothing is read back, and nothing but ``count``,
    ``span`` and ``nucleus`` shapes it.
    """

    def step(slots: Slots, count: int, span: int, *, nucleus: bool) -> None:
        position = slots.position[:count]
        logits = forward(slots.token[:count], slots.spoken[:count], position, slots.cache, span)
        slots.logits[: count * slots.each].copy_(logits)
        position.add_(1)
        slots.draw(0, count, nucleus=nucleus)

    return step


@dataclass(slots=True)
class _Speaking:
    """The host's view of a slot in work."""

    utterance: Utterance
    bound: int
    position: int
    fresh: int = 1  # tokens drawn that the host has not looked at
    tokens: list[int] = field(default_factory=list)

    def prepare(self, slots: Slots, slot: int) -> None:
        """Draw the random numbers of the next token."""
        if self.utterance.sampling.temperature > 0:
            slots.noise[slot].exponential_(generator=self.utterance.generator)

    def hear(self, drawn: list[int], stop: int) -> Said | None:
        """Take the tokens drawn since the last look; return what was said if it has ended."""
        for token in drawn[len(drawn) - self.fresh :]:
            if token == NOT_FINITE:
                where = f"t3 gave numbers that are not finite at token {len(self.tokens)}"
                return Said(self.utterance, error=NumericsError(where))
            if token == stop:
                return Said(self.utterance, tuple(self.tokens))
            self.tokens.append(token)
            self.utterance.on_token(len(self.tokens))
            if len(self.tokens) == self.bound:
                return Said(self.utterance, tuple(self.tokens), cut=True)
        self.fresh = 0
        return None


@torch.inference_mode()
def decode(
    t3: T3, slots: Slots, take: Callable[[], Utterance | None], step: Step, stride: int = 1
) -> Iterator[Said]:
    """Say what ``take`` gives until it gives nothing and all is said; yield each as it ends.

    Args:
        take: asked whenever a slot is free; None if there is nothing (for now).
        step: see ``stepping``.
        stride: steps between two looks at the tokens; what was drawn after an end is dropped.
    """
    speaking: list[_Speaking] = []
    while True:
        while len(speaking) < slots.count and (utterance := take()) is not None:
            slot = len(speaking)
            try:
                length = slots.enter(slot, utterance, t3, stride)
            except TextError as error:
                yield Said(utterance, error=error)
                continue
            speaking.append(_Speaking(utterance, t3.bound(utterance.sampling), length))
            speaking[slot].prepare(slots, slot)
            slots.draw(slot, slot + 1, nucleus=utterance.sampling.top_p < 1)
        if not speaking:
            return
        ended = _look(slots, speaking, t3.shape.stop_speech)
        yield from ended
        if not ended:
            _advance(slots, speaking, step, stride)


def _look(slots: Slots, speaking: list[_Speaking], stop: int) -> list[Said]:
    """Read what was drawn since the last look; take out what has ended."""
    drawn = slots.latest(len(speaking), max(one.fresh for one in speaking))
    ended = []
    for slot in reversed(range(len(speaking))):
        said = speaking[slot].hear(drawn[slot], stop)
        if said is None:
            continue
        ended.append(said)
        if said.error is not None:
            slots.cache.clear(slot)
        last = speaking.pop()
        if slot < len(speaking):  # the last one fills the gap: slots in work stay together
            slots.move(len(speaking), slot)
            speaking[slot] = last
    return ended


def _advance(slots: Slots, speaking: list[_Speaking], step: Step, stride: int) -> None:
    """Run ``stride`` steps without looking."""
    nucleus = any(one.utterance.sampling.top_p < 1 for one in speaking)
    for _ in range(stride):
        for slot, one in enumerate(speaking):
            one.prepare(slots, slot)
            one.position += 1
            one.fresh += 1
        # a cache no longer than what is read lies in one piece, and products need no copy of it
        span = blocks(max(one.position for one in speaking))
        slots.cache.reserve(span)
        step(slots, len(speaking), span, nucleus=nucleus)
