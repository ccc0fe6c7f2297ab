"""The T3 decode step over int8 or int4 weights on the CPU: embeddings, layers and head in one call.

Responsible for the addresses of T3's tensors. Not responsible for the arithmetic, which is
kernels/cpu/t3_decode.py's (and the same as ``T3.step``'s up to the order of sums), or for the loop
around a step.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from chatterbox_opt.config.model_config import GPT2, LLAMA
from chatterbox_opt.kernels.cpu import openmp
from chatterbox_opt.layers.linear_int import IntegerLinear, init_task, quantization_scratch
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.models.t3.ragged_kv_cache import Int8KVCache

ROPE_BLOCK = 1024  # positions by which the tables of RoPE grow


def supports(t3: T3) -> bool:
    """Whether T3's weights are quantized to int8 or int4."""
    return isinstance(t3.head, IntegerLinear)


class Int8Step:
    """A ``decode.DecodeStep`` over slots with an Int8KVCache.

    Valid until T3's weights change. Its buffers stay where they are, so a step writes few numbers.
    """

    def __init__(self, t3: T3, slots: DecodeState) -> None:
        """Bind the weights and the slots' tensors."""
        from chatterbox_opt.kernels.cpu import t3_decode  # numba is only needed here

        cache = slots.cache
        assert isinstance(cache, Int8KVCache)
        assert t3.dtype == torch.float32, "activations between the matrices are float32"
        self._t3, self._slots, self._work = t3, slots, t3_decode.decode_step.address
        self._task = openmp.torch_openmp().new_task(t3_decode.DECODE_STEP)
        self._capacities = cache.capacities.numpy()
        self._positions = slots.position.numpy()
        self._rows_per_seq = cache.rows_per_seq
        self._rope: tuple[Tensor, ...] = ()
        self._set_weights()
        task, counters = self._task, (slots.last_token, slots.num_generated, slots.position)
        token, index, position = counters
        openmp.set_pointers(task, token=token, position=position, logits=slots.logits)
        openmp.set_pointers(task, index=index if t3.config.backbone == LLAMA else position)
        openmp.set_pointers(task, kv_pointers=cache.addresses, capacity=cache.capacities)
        task["rows_per_seq"], task["num_seqs"] = cache.rows_per_seq, slots.count
        self._set_scratch(slots.count * cache.rows_per_seq)

    def _set_weights(self) -> None:
        t3, config, task = self._t3, self._t3.config, self._task
        # keeps the memory behind ``_matrices`` alive
        self._layers = [cast(IntegerLinear, t3.get_submodule(path)) for path in t3.matrices]
        self._matrices = np.concatenate([layer.descriptor() for layer in self._layers])
        norms = [n for block in t3.blocks for n in (block.attention_norm, block.ffn_norm)]
        norms.append(t3.norm)
        self._norms = torch.stack([norm.weight for norm in norms]).float()
        task["matrices"] = self._matrices.ctypes.data
        task["norms"] = self._norms.data_ptr()
        if config.backbone == GPT2:
            self._norm_biases = torch.stack([norm.bias for norm in norms]).float()
            task["norm_biases"] = self._norm_biases.data_ptr()
        tokens, positions = self._tables = t3.tables
        assert tokens.is_contiguous() and positions.is_contiguous()
        openmp.set_pointers(task, tokens=tokens, positions=positions)
        task["num_positions"] = len(positions)
        task["gated"], task["eps"] = config.backbone == LLAMA, config.norm_eps
        for name in ("layers", "heads", "head_dim", "ffn"):
            task[name] = getattr(config, name)

    def _set_scratch(self, rows: int) -> None:
        config, task = self._t3.config, self._task
        self._scratch = {
            "x": torch.empty(rows, config.width),
            "wide": torch.empty(rows, max(3 * config.width, 2 * config.ffn)),
            "narrow": torch.empty(rows, config.width),
        }
        self._quantized = quantization_scratch(rows, int(self._matrices["padded"].max()))
        init_task(task, rows, self._quantized)
        openmp.set_pointers(task, **self._scratch)
        self._probs = torch.empty(rows * config.heads, 0)

    def _grow(self, positions: int) -> None:
        """Make room for sequences of so many positions."""
        self._probs = torch.empty(len(self._probs), positions)
        self._task["probs_stride"] = self._probs.shape[1]
        openmp.set_pointers(self._task, probs=self._probs)
        if not self._rope or len(self._rope[0]) < positions:
            rounded = -(-positions // ROPE_BLOCK) * ROPE_BLOCK
            self._rope = self._t3.rope(torch.arange(rounded))
            openmp.set_pointers(self._task, **dict(zip(("cos", "sin"), self._rope, strict=False)))

    def __call__(self, slots: DecodeState, count: int, _: int, /, *, needs_sort: bool) -> None:
        """Run one token of the first ``count`` sequences, each up to its own position."""
        assert slots is self._slots
        assert (self._positions[:count] < self._capacities[:count]).all(), "reserve() comes first"
        positions = int(self._capacities.max())
        if positions > self._probs.shape[1]:
            self._grow(positions)
        self._task["rows"] = count * self._rows_per_seq
        openmp.torch_openmp().run(self._work, self._task.ctypes.data)
        slots.sample_next(0, count, needs_sort=needs_sort)
