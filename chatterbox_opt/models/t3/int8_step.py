"""T3's step over integer matrices on the processor: all layers and the head in one call.

Knows where T3's tensors lie. Knows nothing of their arithmetic, which is t3_decode.py's (and the
same as ``T3.step``'s but for keys and values in float16), or of the loop around a step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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

KEPT = torch.float16  # of keys and values: a step at 300 positions reads 74 MB of them, not 147


def supports(t3: T3) -> bool:
    """Whether this is a T3 of integer matrices."""
    return isinstance(t3.head, IntegerLinear)


class Int8Step:
    """Call it as ``T3.step``, with a RaggedCache of ``KEPT``. Good until T3's weights change."""

    def __init__(self, t3: T3) -> None:
        from chatterbox_opt.kernels.cpu import t3_decode  # numba is only needed here

        self._t3, self._work = t3, t3_decode.decode_step.address
        assert t3.dtype == torch.float32, "what is between the matrices"
        layers = [
            layer
            for block in t3.blocks
            for layer in (block.qkv, block.out, block.gate_up, block.down)
        ]
        self._layers = (*layers, t3.head)  # whose addresses are kept here
        self._matrices = np.concatenate([layer.descriptor() for layer in self._layers])
        norms = [n.weight for block in t3.blocks for n in (block.attention_norm, block.ffn_norm)]
        self._norms = torch.stack((*norms, t3.norm.weight)).float()
        shape, self._task = t3.shape, openmp.torch_openmp().new_task(t3_decode.DECODE_STEP)
        self._task["matrices"] = self._matrices.ctypes.data
        self._task["norms"] = self._norms.data_ptr()
        for name in ("layers", "heads", "head_dim", "ffn"):
            self._task[name] = getattr(shape, name)
        self._task["eps"] = shape.norm_eps

    def __call__(
        self, token: Tensor, num_generated: Tensor, position: Tensor, cache: KVCache, span: int
    ) -> Tensor:
        """See ``T3.step``."""
        assert isinstance(cache, RaggedKVCache)
        t3, shape, task = self._t3, self._t3.shape, self._task
        x, cos, sin = t3.entering(token, num_generated, position, cache.rows_per_seq)
        rows, position = len(x), position.contiguous()
        assert bool((position < cache.room[: len(position)]).all()), "reserve() comes first"
        wide = x.new_empty(rows, max(3 * shape.width, 2 * shape.ffn))
        narrow, logits = torch.empty_like(x), x.new_empty(rows, shape.speech_vocab)
        probs_stride = int(cache.room.max()) + VECTOR_WIDTH
        probs = x.new_empty(rows * shape.heads, probs_stride)
        scratch = quantization_scratch(rows, int(self._matrices["padded"].max()))
        init_task(task, rows, scratch)
        task["rows_per_seq"], task["num_seqs"] = cache.rows_per_seq, len(cache.room)
        task["probs_stride"] = probs_stride
        openmp.set_pointers(task, x=x, cos=cos, sin=sin, logits=logits, position=position)
        openmp.set_pointers(task, kv_pointers=cache.addresses, capacity=cache.room)
        openmp.set_pointers(task, wide=wide, narrow=narrow, probs=probs)
        openmp.torch_openmp().run(self._work, task.ctypes.data)
        return logits
