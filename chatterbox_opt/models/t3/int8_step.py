"""The T3 decode step over int8 or int4 weights on the CPU: all layers and the head in one call.

Responsible for the addresses of T3's tensors. Not responsible for the arithmetic, which is
kernels/cpu/t3_decode.py's (and the same as ``T3.step``'s except for keys and values in float16),
or for the loop around a step.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from chatterbox_opt.config.model_config import GPT2, LLAMA
from chatterbox_opt.kernels.cpu import openmp
from chatterbox_opt.layers.linear_int import (
    VECTOR_WIDTH,
    IntegerLinear,
    init_task,
    quantization_scratch,
)
from chatterbox_opt.models.t3.kv_cache import KVCache
from chatterbox_opt.models.t3.model import T3
from chatterbox_opt.models.t3.ragged_kv_cache import RaggedKVCache

KV_DTYPE = torch.float16  # a step at 300 positions reads 74 MB of keys and values, not 147


def supports(t3: T3) -> bool:
    """Whether T3's weights are quantized to int8 or int4."""
    return isinstance(t3.head, IntegerLinear)


class Int8Step:
    """``T3.step`` over a RaggedKVCache of ``KV_DTYPE``. Valid until T3's weights change."""

    def __init__(self, t3: T3) -> None:
        from chatterbox_opt.kernels.cpu import t3_decode  # numba is only needed here

        self._t3, self._work = t3, t3_decode.decode_step.address
        assert t3.dtype == torch.float32, "activations between the matrices are float32"
        # keeps the memory behind ``_matrices`` alive
        self._layers = [cast(IntegerLinear, t3.get_submodule(path)) for path in t3.matrices]
        self._matrices = np.concatenate([layer.descriptor() for layer in self._layers])
        norms = [n for block in t3.blocks for n in (block.attention_norm, block.ffn_norm)]
        norms.append(t3.norm)
        self._norms = torch.stack([norm.weight for norm in norms]).float()
        config, self._task = t3.config, openmp.torch_openmp().new_task(t3_decode.DECODE_STEP)
        self._task["matrices"] = self._matrices.ctypes.data
        self._task["norms"] = self._norms.data_ptr()
        if config.backbone == GPT2:
            self._norm_biases = torch.stack([norm.bias for norm in norms]).float()
            self._task["norm_biases"] = self._norm_biases.data_ptr()
        self._task["gated"] = config.backbone == LLAMA
        for name in ("layers", "heads", "head_dim", "ffn"):
            self._task[name] = getattr(config, name)
        self._task["eps"] = config.norm_eps

    def __call__(
        self, token: Tensor, num_generated: Tensor, position: Tensor, cache: KVCache, kv_len: int
    ) -> Tensor:
        """Run one token of each sequence; arguments and result as of ``T3.step``."""
        assert isinstance(cache, RaggedKVCache)
        t3, config, task = self._t3, self._t3.config, self._task
        # 1) embeddings and RoPE tables; none with GPT-2, whose positions are in the embeddings
        x, *rope = t3.embed_tokens(token, num_generated, position, cache.rows_per_seq)
        rows, position = len(x), position.contiguous()
        assert bool((position < cache.capacities[: len(position)]).all()), "reserve() comes first"
        # 2) scratch buffers and the logits
        wide = x.new_empty(rows, max(3 * config.width, 2 * config.ffn))
        narrow, logits = torch.empty_like(x), x.new_empty(rows, config.speech_vocab)
        probs_stride = int(cache.capacities.max()) + VECTOR_WIDTH
        probs = x.new_empty(rows * config.heads, probs_stride)
        scratch = quantization_scratch(rows, int(self._matrices["padded"].max()))
        # 3) pointers of the task, and the call
        init_task(task, rows, scratch)
        task["rows_per_seq"], task["num_seqs"] = cache.rows_per_seq, len(cache.capacities)
        task["probs_stride"] = probs_stride
        openmp.set_pointers(task, x=x, logits=logits, position=position)
        openmp.set_pointers(task, **dict(zip(("cos", "sin"), rope, strict=False)))
        openmp.set_pointers(task, kv_pointers=cache.addresses, capacity=cache.capacities)
        openmp.set_pointers(task, wide=wide, narrow=narrow, probs=probs)
        openmp.torch_openmp().run(self._work, task.ctypes.data)
        return logits
