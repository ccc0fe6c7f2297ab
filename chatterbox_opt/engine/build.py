"""A plan and a checkpoint to a pipeline: loads, stores, places and compiles the stages."""

from __future__ import annotations

import gc
import logging
from typing import cast

import torch

from chatterbox_opt.checkpoints.loader import load_flow, load_t3, load_tokenizer, load_vocoder
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.config.plan import OVERLAPPED, Plan
from chatterbox_opt.engine import decode_graphs
from chatterbox_opt.engine.decode import DecodeBackend, EagerBackend, StepFn
from chatterbox_opt.engine.overlap import InlineRenderer, OverlappedRenderer
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.kernels.cpu import onednn
from chatterbox_opt.layers import linear_int, linear_onednn, weight_layout
from chatterbox_opt.layers.weight_layout import store_narrow
from chatterbox_opt.models.flow import estimator
from chatterbox_opt.models.flow import model as flow_model
from chatterbox_opt.models.t3 import model as t3_model
from chatterbox_opt.models.vocoder import model as vocoder_model
from chatterbox_opt.runtime import cuda_graphs, malloc
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS, GraphCapturer, SideStream
from chatterbox_opt.runtime.offload import NONE, STAGES, StagePlacement

log = logging.getLogger(__name__)
GPU_RENDER_GROUP = 8  # utterances that flow and vocoder of a card work at together


def load_pipeline(checkpoint: Checkpoint, plan: Plan, cache: WeightCache | None = None) -> Pipeline:
    """Load the stages as the plan says: cast or store, place, compile."""
    t3_dtype = weight_layout.compute_dtype(plan.compute or plan.t3)
    integers = plan.flow == "int8"  # its values are bfloat16
    flow_dtype = weight_layout.compute_dtype(
        plan.compute or ("bfloat16" if integers else plan.flow)
    )
    layout = weight_layout.layout(plan.compute or plan.t3, plan.device)
    if layout == weight_layout.WEIGHT_ONLY:
        t3_dtype = flow_dtype  # the values between its matrices are the card's halves
    # the flow is read whole before it is narrowed: first, while there is nothing beside it
    flow_stage, hift = load_flow(checkpoint, flow_dtype, cache), load_vocoder(checkpoint)
    malloc.trim()
    stages = {
        "t3": load_t3(checkpoint, t3_dtype, layout, cache),
        "flow": flow_stage,
        "vocoder": hift,
    }
    if integers:  # of bfloat16 numbers: their rounding is a thirtieth of that to int8
        linear_int.quantize_transformers(flow_stage, estimator.Transformer)
    if plan.device == "cpu" and not plan.compute and onednn.supported():
        linear_onednn.use_onednn(stages["flow"])
        # narrower ones have layouts of their own, and a compiler wants plain layers
        if (plan.t3, plan.compile) == ("float32", "none"):
            linear_onednn.use_onednn(stages["t3"])
    if "flow" in plan.fused:
        flow_stage.estimator.fuse()
    if plan.compute:
        store_narrow(stages["t3"], getattr(torch, plan.t3))
        store_narrow(stages["flow"], getattr(torch, plan.flow))
    device = torch.device(plan.device)
    if plan.device == "cpu":
        malloc.trim()
        malloc.keep_freed_pages()
    try:
        placement = StagePlacement(stages, device, offload=plan.offload)
    except torch.OutOfMemoryError:
        log.warning("the card has no room for all stages: they take turns on it")
        placement = StagePlacement(stages, device, offload=STAGES)
    group = 1 if plan.device == "cpu" else GPU_RENDER_GROUP
    beside = plan.sound == OVERLAPPED and placement.offload == NONE
    sound = OverlappedRenderer(SideStream(device)) if beside else InlineRenderer()
    backend = _decode_backend(plan, placement, beside=beside)
    return Pipeline(load_tokenizer(checkpoint), placement, backend, group, sound)


def _decode_backend(plan: Plan, placement: StagePlacement, *, beside: bool) -> DecodeBackend:
    """How T3's steps are run; on a card, flow and vocoder are recorded too when T3 is.

    Args:
        beside: the flow may work while T3 does.
    """
    forward, compile = None, plan.compile
    if compile == "inductor":
        with placement("t3") as stage:
            forward = _compiled(cast(t3_model.T3, stage))
    fused = "t3" in plan.fused and forward is None  # inductor makes kernels of its own
    kv_cache = torch.int8 if plan.kv_cache == "int8" else None
    if compile == "none" or placement.device.type != "cuda":
        return EagerBackend(forward, fused=fused, kv_cache=kv_cache)
    # captures collect nothing (``card.uncollected``), so what cycles of old hold of the GPU would
    # lie beside the recordings' memory. Once, for where there are many objects it takes long
    gc.collect()
    record = GraphCapturer(placement.device)
    solver = cast(flow_model.Flow, placement.module("flow"))
    apart = (
        record.for_other_stream() if beside else record
    )  # one pool of memory is enough for turns
    solver.executor = cuda_graphs.GraphedExecutor(apart, solver, "the flow")
    hift = cast(vocoder_model.Vocoder, placement.module("vocoder"))
    hift.executor = cuda_graphs.GraphedExecutor(apart, hift, "the vocoder")
    return decode_graphs.CudaGraphBackend(record, forward, fused=fused, kv_cache=kv_cache)


def _compiled(model: t3_model.T3) -> StepFn | None:
    try:
        return decode_graphs.compiled_step(model)
    except DEVICE_ERRORS as error:
        log.warning("%s", cuda_graphs.compilation_failed("the t3 step", error))
        return None
