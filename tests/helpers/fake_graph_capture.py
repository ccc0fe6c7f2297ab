"""Fake CUDA graph capture for machines without a GPU, as strict as a real one.

It stores every torch operation with its tensors: scalars and addresses are frozen, reading a value
back raises, and the capture leaves existing memory unchanged. A replay runs the same operations on
the same memory, whatever it contains by then.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from chatterbox_opt import Engine
from chatterbox_opt.checkpoints.loader import load_vocoder
from chatterbox_opt.engine.decoding.decode_graphs import CudaGraphBackend
from chatterbox_opt.layers import linear_onednn
from chatterbox_opt.runtime.cuda_graphs import GraphedExecutor

REFUSED = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal")


class Tape(TorchDispatchMode):
    """Operations as they are met."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.before = {}  # storage -> (a tensor over it, its numbers before recording)
        self.own = set()  # storages made while recording
        self.held = []  # so that no storage made here is taken for another

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for spec, given in zip(func._schema.arguments, args, strict=False):
            if spec.alias_info is not None and spec.alias_info.is_write:
                for tensor in tree_leaves(given):
                    self._remember(tensor)
        made = func(*args, **kwargs)
        tensors = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
        known = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        fresh = [x for x in tensors if _place(x) not in known]
        self.own |= {_place(x) for x in fresh}
        self.held += fresh
        # a parameter may be given other numbers elsewhere: what is frozen is the place
        args, kwargs, kept = tree_map(_here, (args, kwargs, made))
        self.operations.append((func, args, kwargs, tree_leaves(kept)))
        return made

    def _remember(self, tensor):
        place = _place(tensor)
        if place not in self.own and place not in self.before:
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            self.before[place] = (whole, whole.clone())

    def rewind(self):
        """Undo what recording did to what was there before."""
        for whole, numbers in self.before.values():
            whole.copy_(numbers)

    def replay(self):
        for func, args, kwargs, made in self.operations:
            again = func(*args, **kwargs)
            again = [again] if isinstance(again, torch.Tensor) else tree_leaves(again)
            for old, new in zip(made, again, strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _here(value):
    """The same memory, whatever becomes of the parameter."""
    if isinstance(value, torch.nn.Parameter):
        return torch.empty(0, dtype=value.dtype).set_(value)
    return value


def _place(tensor):
    return tensor.untyped_storage()._cdata


def record(work):
    """A ``cuda_graphs.CaptureFn``."""
    with Tape() as tape:
        work()
    tape.rewind()
    assert tape.operations, "nothing was recorded"
    return tape.replay


def capture_graphs(engine: Engine, record) -> None:
    """Set up an engine with CUDA graphs, as on a GPU."""
    pipeline = engine.pipeline
    flow, vocoder = (pipeline.placement.module(name) for name in ("flow", "vocoder"))
    for stage in (flow, pipeline.placement.module("t3")):
        linear_onednn.use_plain(stage)  # oneDNN's own layout is no memory that a tape can follow
    flow.executor = GraphedExecutor(record, flow, "the flow")
    vocoder.generator = load_vocoder(engine.checkpoint).generator  # without kernels of a CPU
    vocoder.executor = GraphedExecutor(record, vocoder, "the vocoder")
    pipeline.decoder.backend = CudaGraphBackend(record)
