"""Static buffers of the sequences being decoded: all that differs between two steps is a tensor.

Responsible for the state of a slot: prefilling a sequence into it and sampling tokens into it. Not
responsible for the decode loop, for stopping criteria, or for how a step is run (decode.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from chatterbox_opt.models.t3 import row_sampler
from chatterbox_opt.models.t3.kv_cache import KVCache
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.models.t3.ragged_kv_cache import RaggedKVCache
from chatterbox_opt.models.t3.sampler import UNFORCED, SamplingTensors, sample
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.sampling import Sampling

# Runs a text [rows_per_seq, length, width] after a voice's ``T3.conditioning`` into the KV cache
# and the logits of slot ``DecodeState.prefill_slot``. The text's last position is
# ``DecodeState.prefill_last``; padding follows.
PrefillFn = Callable[["DecodeState", Tensor, Tensor], None]


class DecodeState:
    """Static buffers for ``count`` sequences.

    Attributes:
        count: slots.
        rows_per_seq: batch rows of one sequence: 2 with classifier-free guidance, else 1.
        last_token: int64 [count], sampled last and not yet run through the model.
        num_generated: int64 [count], tokens sampled so far.
        position: int64 [count], the KV cache position where ``last_token`` goes.
        logits: [count * rows_per_seq, speech_vocab], of the last position that was run; T3's dtype,
            or float32 for a ``RowSampler``.
        seen: bool [count, speech_vocab], the token history for the repetition penalty.
        sampling_tensors: sampling parameters, a row for each slot.
        noise: float32 [count, speech_vocab], Exp(1), for the next token.
        token_buffer: int64 [count, speech_positions], the sampled tokens; from ``num_generated``
            on, the forced tokens or ``UNFORCED``.
        prefill_slot, prefill_last: int64 [1], arguments of ``PrefillFn``.
        cache: keys and values.
        turbo: see ``T3.turbo_sampling``.
        start: the start token.
    """

    def __init__(self, t3: T3, count: int, cache: KVCache) -> None:
        """Allocate on the model's device.

        Args:
            cache: an empty one for ``count`` sequences.
        """
        config, device, rows_per_seq = t3.config, t3.like.device, cache.rows_per_seq
        self.turbo, self.start = t3.turbo_sampling, config.start_speech
        # with a ragged cache nothing is captured
        compiled = isinstance(cache, RaggedKVCache) and row_sampler.supports()
        self.count, self.rows_per_seq, self.cache = count, rows_per_seq, cache
        self.last_token, self.num_generated, self.position = (
            torch.zeros(count, dtype=torch.long, device=device) for _ in range(3)
        )
        self.prefill_slot, self.prefill_last = torch.zeros(2, 1, dtype=torch.long, device=device)
        dtype = torch.float32 if compiled else t3.dtype
        self.logits = torch.zeros(
            count * rows_per_seq, config.speech_vocab, dtype=dtype, device=device
        )
        self.seen = torch.zeros(count, config.speech_vocab, dtype=torch.bool, device=device)
        self.sampling_tensors = SamplingTensors.allocate(count, device)
        self.noise = torch.ones(count, config.speech_vocab, device=device)
        self.token_buffer = torch.full(
            (count, config.speech_positions), UNFORCED, dtype=torch.long, device=device
        )
        self._row_sampler = self._compiled_sampler() if compiled else None

    def _compiled_sampler(self) -> row_sampler.RowSampler:
        return row_sampler.RowSampler(
            self.logits,
            self.seen,
            self.sampling_tensors,
            self.noise,
            self.token_buffer,
            (self.last_token, self.num_generated, self.position),
            start=self.start,
            turbo=self.turbo,
        )

    def prefill(
        self,
        slot: int,
        prompt: Prompt,
        sampling: Sampling,
        t3: T3,
        prefill: PrefillFn,
        extra_positions: int,
        forced_tokens: Sequence[int] = (),
    ) -> int:
        """Run a prompt's prefix into a slot; return the prefix's length.

        Args:
            prefill: from the decode backend.
            extra_positions: KV cache positions to reserve after the prefix.
            forced_tokens: ids that replace the sampled ones (teacher forcing), then the stop
                token. Empty: free-running.

        Raises:
            TextError: more text tokens than the model has positions.
        """
        # 1) embed the prompt, reserve KV cache positions and run the prefix
        text = t3.embed(prompt, self.rows_per_seq)
        conditioning = t3.conditioning(prompt, sampling.exaggeration)
        first, count = conditioning.shape[3], text.shape[1]
        length, padding = first + count, self.cache.padded_length(count) - count
        self.cache.clear(slot)  # of the previous sequence: attention weight 0 times NaN is NaN
        self.cache.reserve(slot, length + max(padding, extra_positions))
        self.prefill_slot.fill_(slot)
        self.prefill_last.fill_(count - 1)
        prefill(self, F.pad(text, (0, 0, 0, padding)), conditioning)
        # 2) reset the slot's counters, history, sampling parameters and forced tokens
        self.position[slot], self.num_generated[slot] = length - 1, 0
        self.seen[slot] = False
        self.seen[slot, t3.config.start_speech] = True
        self.sampling_tensors.set(slot, sampling)
        self.token_buffer[slot] = UNFORCED
        if forced_tokens:
            forced = torch.tensor([*forced_tokens, t3.config.stop_speech])
            self.token_buffer[slot, : len(forced)] = to_device(forced, self.token_buffer.device)
        return length

    def sample_next(self, first: int, last: int, *, needs_sort: bool) -> None:
        """Sample and store the next token of slots ``first`` to ``last``.

        Args:
            needs_sort: see ``sampler.filter_logits``.
        """
        if self._row_sampler is None:
            self.sample_with_torch(first, last, needs_sort=needs_sort)
            return
        for slot in self._row_sampler(first, last):
            self.sample_with_torch(slot, slot + 1, needs_sort=needs_sort)

    def sample_with_torch(self, first: int, last: int, *, needs_sort: bool) -> None:
        """``sample_next`` in tensor operations only, so it can be captured."""
        rows = slice(first, last)
        logits = self.logits[first * self.rows_per_seq : last * self.rows_per_seq]
        params = self.sampling_tensors.slice(first, last)
        token = sample(
            logits,
            self.seen[rows],
            params,
            self.noise[rows],
            needs_sort=needs_sort,
            turbo=self.turbo,
        )
        if self.turbo:  # the start token was in the history of the first token only
            self.seen[rows, self.start] &= self.num_generated[rows] > 0
        index = self.num_generated[rows][:, None]
        forced_tokens = self.token_buffer[rows].gather(1, index)[:, 0]
        token = torch.where(forced_tokens == UNFORCED, token, forced_tokens)
        self.token_buffer[rows].scatter_(1, index, token[:, None])
        token = token.clamp(min=0)  # NOT_FINITE is not an index into the embedding table
        self.last_token[rows].copy_(token)
        self.seen[rows].scatter_(1, token[:, None], value=True)
        self.position[rows].add_(1)
        # a finished slot may be stepped a few times more: it must stay inside its tables
        self.num_generated[rows].add_(1).clamp_(max=self.token_buffer.shape[1] - 1)

    def latest(self, slots: int, count: int) -> Tensor:
        """The last ``count`` tokens of each of the first ``slots`` slots: int64 [slots, count]."""
        if self._row_sampler is not None:
            return torch.tensor(self._row_sampler.latest(slots, count))
        back = torch.arange(-count, 0, device=self.token_buffer.device)
        indices = (self.num_generated[:slots, None] + back).clamp(min=0)
        return self.token_buffer[:slots].gather(1, indices)

    def move(self, source: int, target: int) -> None:
        """Copy slot ``source`` over slot ``target``."""
        for buffer in (
            self.last_token,
            self.num_generated,
            self.position,
            self.seen,
            self.token_buffer,
            self.noise,
        ):
            buffer[target] = buffer[source]
        self.sampling_tensors.values[target] = self.sampling_tensors.values[source]
        source_rows, target_rows = (
            slice(i * self.rows_per_seq, (i + 1) * self.rows_per_seq) for i in (source, target)
        )
        self.logits[target_rows] = self.logits[source_rows]
        self.cache.move(source, target)
