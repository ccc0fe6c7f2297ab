"""Static buffers for utterances in work: what differs between two decode steps is a tensor here.

Knows a slot's state: how an utterance enters it, how a token is drawn into it. Knows nothing of
the loop, of when an utterance ends, or of how a step is run (decode.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.errors import NumericsError, TextError
from chatterbox_opt.models.t3.kv_cache import KVCache
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.models.t3.sampler import SamplingTensors, sample
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.sampling import Sampling

UNFORCED = -1  # in ``Slots.token_buffer``: nothing is prescribed here

# A prefix [each, length, width] into the cache and the logits of slot ``Slots.entering``, its last
# position being ``Slots.last``; what is behind that is padding.
PrefillFn = Callable[["DecodeState", Tensor], None]


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRequest:
    """What shall be said once.

    Attributes:
        prompt: text and voice.
        sampling: its knobs; the seed is in ``generator``.
        generator: on the model's device; one draw of [speech_vocab] numbers for each token.
        on_token: told at every token how many there are.
        forced_tokens: ids that are said whatever is drawn, and then the stop token; empty is free speech.
            It serves to measure like with like.
    """

    prompt: Prompt
    sampling: Sampling
    generator: torch.Generator
    on_token: Callable[[int], None]
    forced_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeOutput:
    """What became of an utterance.

    Attributes:
        tokens: without the stop token; ids from 6561 on are no sound.
        truncated: it came to its limit without a stop token.
        error: NumericsError or TextError, or None.
    """

    utterance: DecodeRequest
    tokens: tuple[int, ...] = ()
    truncated: bool = False
    error: NumericsError | TextError | None = None


class DecodeState:
    """Static buffers for ``count`` utterances in work.

    Attributes:
        rows_per_seq: rows of one utterance: 2 with classifier-free guidance, else 1.
        token: int64 [count], drawn last and not yet run through the model.
        num_generated: int64 [count], how many tokens were drawn.
        position: int64 [count], where in the cache ``last_token`` goes.
        logits: [count * each, speech_vocab], of the model's last position.
        seen: bool [count, speech_vocab], the history for the repetition penalty.
        knobs: of the sampler.
        noise: float32 [count, speech_vocab], Exp(1) for the next draw.
        token_buffer: int64 [count, speech_positions], what was drawn; ahead of that the script, or FREE.
        entering, last: int64 [1], for ``PrefillFn``.
        cache: keys and values.
    """

    def __init__(self, t3: T3, count: int, cache: KVCache) -> None:
        """Allocate on the model's device.

        Args:
            cache: an empty one for ``count`` utterances.
        """
        shape, device, rows_per_seq = t3.shape, t3.like.device, cache.rows_per_seq
        self.count, self.rows_per_seq, self.cache = count, rows_per_seq, cache
        self.last_token, self.num_generated, self.position = (
            torch.zeros(count, dtype=torch.long, device=device) for _ in range(3)
        )
        self.entering, self.last = torch.zeros(2, 1, dtype=torch.long, device=device)
        self.logits = torch.zeros(
            count * rows_per_seq, shape.speech_vocab, dtype=t3.dtype, device=device
        )
        self.seen = torch.zeros(count, shape.speech_vocab, dtype=torch.bool, device=device)
        self.knobs = SamplingTensors.room(count, device)
        self.noise = torch.ones(count, shape.speech_vocab, device=device)
        self.token_buffer = torch.full(
            (count, shape.speech_positions), UNFORCED, dtype=torch.long, device=device
        )

    def enter(
        self, slot: int, utterance: DecodeRequest, t3: T3, prefill: PrefillFn, surplus: int
    ) -> int:
        """Run an utterance's prefix into a slot; return its length.

        Args:
            prefill: of the way that steps are run.
            surplus: positions wanted behind the prefix.

        Raises:
            TextError: more text tokens than the model has positions.
        """
        prefix = t3.embed(utterance.prompt, utterance.sampling.exaggeration, self.rows_per_seq)
        length = prefix.shape[1]
        room = self.cache.prefix(length)
        self.cache.clear(slot)  # of whoever was here: a weight of 0 times NaN is NaN
        self.cache.reserve(slot, max(room, length + surplus))
        self.entering.fill_(slot)
        self.last.fill_(length - 1)
        prefill(self, F.pad(prefix, (0, 0, 0, room - length)))
        self.position[slot], self.num_generated[slot] = length - 1, 0
        self.seen[slot] = False
        self.seen[slot, t3.shape.start_speech] = True
        self.knobs.set(slot, utterance.sampling)
        self.token_buffer[slot] = UNFORCED
        if utterance.forced_tokens:
            forced_tokens = torch.tensor([*utterance.forced_tokens, t3.shape.stop_speech])
            self.token_buffer[slot, : len(forced_tokens)] = to_device(
                forced_tokens, self.token_buffer.device
            )
        return length

    def draw(self, first: int, last: int, *, ranked: bool) -> None:
        """Choose the next token of slots ``first`` to ``last`` and note it; tensors only.

        Args:
            ranked: see ``sampler.filter_logits``.
        """
        rows = slice(first, last)
        token = sample(
            self.logits[first * self.rows_per_seq : last * self.rows_per_seq],
            self.seen[rows],
            self.knobs.slice(first, last),
            self.noise[rows],
            ranked=ranked,
        )
        place = self.num_generated[rows][:, None]
        forced_tokens = self.token_buffer[rows].gather(1, place)[:, 0]
        token = torch.where(forced_tokens == UNFORCED, token, forced_tokens)
        self.token_buffer[rows].scatter_(1, place, token[:, None])
        token = token.clamp(min=0)  # NOT_FINITE is no row of a table
        self.last_token[rows].copy_(token)
        self.seen[rows].scatter_(1, token[:, None], value=True)
        self.position[rows].add_(1)
        # a slot that ended may be stepped a little further: it must not leave its tables
        self.num_generated[rows].add_(1).clamp_(max=self.token_buffer.shape[1] - 1)

    def latest(self, slots: int, count: int) -> Tensor:
        """The last ``count`` tokens of each of the first ``slots`` slots: int64 [slots, count]."""
        back = torch.arange(-count, 0, device=self.token_buffer.device)
        places = (self.num_generated[:slots, None] + back).clamp(min=0)
        return self.token_buffer[:slots].gather(1, places)

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another."""
        for kept in (
            self.last_token,
            self.num_generated,
            self.position,
            self.seen,
            self.token_buffer,
            self.noise,
        ):
            kept[target] = kept[source]
        self.knobs.values[target] = self.knobs.values[source]
        here, there = (
            slice(i * self.rows_per_seq, (i + 1) * self.rows_per_seq) for i in (source, target)
        )
        self.logits[there] = self.logits[here]
        self.cache.move(source, target)
