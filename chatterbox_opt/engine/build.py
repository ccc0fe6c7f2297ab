"""Loads what an engine consists of; builds a pipeline from a plan and a checkpoint.

Responsible for executing the plan: load, cast, change layouts, move to the device, compile. Not
responsible for decisions (config/plan.py) or for requests.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from chatterbox_opt.audio.watermark import Watermark
from chatterbox_opt.checkpoints import flows, weight_cache
from chatterbox_opt.checkpoints.loader import load_flow, load_t3, load_tokenizer, load_vocoder
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.checkpoints.weight_cache import WeightCache
from chatterbox_opt.config.plan import ONEDNN_LAYOUT, OVERLAPPED, PLAIN, TRITON, Plan, resolve
from chatterbox_opt.config.profile import OWN_FLOW
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.decoding import decode_graphs
from chatterbox_opt.engine.decoding.decode import DecodeBackend, EagerBackend, StepFn
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.scheduler import SpeechBackend
from chatterbox_opt.engine.upstream_backend import NO_CONVERSION, UpstreamBackend
from chatterbox_opt.errors import InputError
from chatterbox_opt.layers import linear_int, linear_onednn
from chatterbox_opt.layers.weight_layout import store_narrow
from chatterbox_opt.models.flow import estimator
from chatterbox_opt.models.flow import model as flow_model
from chatterbox_opt.models.t3 import model as t3_model
from chatterbox_opt.models.vocoder import model as vocoder_model
from chatterbox_opt.runtime import cuda, cuda_graphs, malloc
from chatterbox_opt.runtime.cuda import DEVICE_ERRORS, GraphCapturer, SideStream
from chatterbox_opt.runtime.offload import NONE, STAGES, StagePlacement
from chatterbox_opt.text.tokenizers.loading import NoTexts
from chatterbox_opt.utils.steps import announce

log = logging.getLogger(__name__)
GPU_RENDER_GROUP = 8  # sequences that flow and vocoder of a GPU run together


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine consists of, but for its voices; attributes as ``Engine``'s."""

    plan: Plan
    checkpoint: Checkpoint
    pipeline: SpeechBackend
    watermark: Watermark | None


def load(
    model: str,
    profile: str,
    device: str,
    overrides: Mapping[str, str] | None,
    plan: Plan | None,
    weights: WeightCache | None,
    *,
    watermark: bool,
    speaks: bool = True,
) -> Parts:
    """Find the weights, make a plan and load; arguments and errors as ``Engine.load``.

    Args:
        speaks: False loads no T3; the pipeline renders only sequences whose tokens are given.
    """
    if plan is None:
        plan = resolve(profile, probe.probe(device), overrides)
    if not plan.optimized and not speaks:
        raise InputError(NO_CONVERSION)
    announce("loading the model")
    # before 3 GB are downloaded, because PerTh may be missing
    mark = Watermark() if watermark and plan.optimized else None
    if not plan.optimized and plan.flow_model != OWN_FLOW:
        raise InputError("plain Chatterbox has its own flow only: unset DISABLE_OPTIMIZATION")
    checkpoint = flows.locate(model, plan.flow_model, speaks=speaks)
    if plan.flow_model != OWN_FLOW and not checkpoint.sources:
        log.warning(flows.SAME, Path(model).name, plan.flow_model)
        plan = replace(plan, flow_model=OWN_FLOW)
    announce("loading the model")
    if checkpoint.config.random_weights:
        log.warning("'%s' has random weights: its output is noise", Path(model).name)
    if not plan.optimized:
        if not watermark:
            log.warning("plain Chatterbox always leaves its watermark")
        backend = UpstreamBackend.load(checkpoint, torch.device(plan.device))
        return Parts(plan, checkpoint, backend, None)
    cache = weights or weight_cache.default()
    pipeline = load_pipeline(checkpoint, plan, cache, speaks=speaks)
    if mark and plan.device == "cuda" and plan.offload == NONE:
        # takes 9 MB and some workspace: not if stages are offloaded for lack of memory
        mark.move(torch.device(plan.device))
    return Parts(plan, checkpoint, pipeline, mark)


def load_pipeline(
    checkpoint: Checkpoint, plan: Plan, cache: WeightCache | None = None, *, speaks: bool = True
) -> Pipeline:
    """Load, cast, place and compile the stages as planned; nothing is decided here.

    Args:
        speaks: as of ``load``.

    Raises:
        WeightsError: a weights file is missing, damaged or of another model.
    """
    stages = _stages(checkpoint, plan, cache, speaks=speaks)
    device = torch.device(plan.device)
    if plan.device == "cpu":
        malloc.trim()
        malloc.keep_freed_pages()
    if plan.device == "cuda":
        cuda.disable_cudnn_attention()  # its plans could not be made inside of captures
    try:
        placement = StagePlacement(stages, device, offload=plan.offload)
    except RuntimeError as error:
        if not cuda.is_out_of_memory(error):
            raise
        log.warning("the GPU has no memory for all stages at once: offloading the idle ones")
        placement = StagePlacement(stages, device, offload=STAGES)
    # if the placement had to offload, there is no memory to run two stages at once
    overlapped = plan.rendering == OVERLAPPED and placement.offload == NONE
    stream = SideStream(device) if overlapped else None
    backend = _decode_backend(plan, placement, overlapped=overlapped)
    group = _render_group(plan)
    silence = checkpoint.config.silence
    tokenizer = load_tokenizer(checkpoint) if speaks else NoTexts()
    return Pipeline(tokenizer, placement, backend, group, stream, silence)


def _render_group(plan: Plan) -> int:
    """How many sequences flow and vocoder run together.

    On a CPU an int8 flow solves one on each core (``Flow.use_core_threads``); otherwise each has
    all cores.
    """
    if plan.device == "cpu":
        return torch.get_num_threads() if plan.flow.layout == "int8" else 1
    return GPU_RENDER_GROUP


def _stages(
    checkpoint: Checkpoint, plan: Plan, cache: WeightCache | None, *, speaks: bool
) -> dict[str, torch.nn.Module]:
    """The stages in host memory, in their dtypes and layouts."""
    # the flow is loaded in full precision and then cast: first, while no other stage is in memory
    flow = load_flow(checkpoint, _dtype(plan.flow.compute), cache)
    vocoder = load_vocoder(checkpoint)
    if plan.device == "cpu":
        vocoder.use_cpu_kernels(_dtype(plan.vocoder.compute))
    malloc.trim()
    if plan.flow.layout == "int8":  # from bfloat16, whose rounding error is 1/30 of int8's
        linear_int.quantize_transformers(flow, estimator.Transformer)
        flow.use_core_threads()
    if plan.flow.layout in ("int8", ONEDNN_LAYOUT):
        linear_onednn.use_onednn(flow)
    if plan.flow.kernels == TRITON:
        flow.estimator.fuse()
    if plan.flow.narrowed:
        store_narrow(flow, _dtype(plan.flow.storage))
    converting = {"flow": flow, "vocoder": vocoder}
    return {"t3": _t3(checkpoint, plan, cache), **converting} if speaks else converting


def _t3(checkpoint: Checkpoint, plan: Plan, cache: WeightCache | None) -> t3_model.T3:
    layout = "" if plan.t3.layout in (PLAIN, ONEDNN_LAYOUT) else plan.t3.layout
    t3 = load_t3(checkpoint, _dtype(plan.t3.compute), layout, cache)
    if plan.t3.layout == ONEDNN_LAYOUT:
        linear_onednn.use_onednn(t3)
    if plan.t3.narrowed:
        store_narrow(t3, _dtype(plan.t3.storage))
    return t3


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _decode_backend(plan: Plan, placement: StagePlacement, *, overlapped: bool) -> DecodeBackend:
    """The backend that runs T3's steps; with CUDA graphs, flow and vocoder are captured too.

    Args:
        overlapped: flow and vocoder may run at the same time as T3.
    """
    forward = None
    if plan.compile == "inductor" and "t3" in placement.stages:
        with placement("t3") as stage:
            forward = _compiled(cast(t3_model.T3, stage))
    fused = plan.t3.kernels == TRITON and forward is None  # inductor generates its own kernels
    kv_cache = torch.int8 if plan.kv_cache == "int8" else None
    if plan.compile == "none" or placement.device.type != "cuda":
        return EagerBackend(forward, fused=fused, kv_cache=kv_cache)
    # the garbage collector is off during captures, so reference cycles that hold GPU memory would
    # not be freed. Collect once and not per capture: it is slow when there are many objects
    gc.collect()
    capturer = GraphCapturer(placement.device)
    # stages that run at the same time need memory pools of their own
    rendering = capturer.for_other_stream() if overlapped else capturer
    flow = cast(flow_model.Flow, placement.module("flow"))
    vocoder = cast(vocoder_model.Vocoder, placement.module("vocoder"))
    flow_graphs = cuda_graphs.GraphedExecutor(rendering, flow, "the flow")
    vocoder_graphs = cuda_graphs.GraphedExecutor(rendering, vocoder, "the vocoder")
    flow.executor, vocoder.executor = flow_graphs, vocoder_graphs
    t3_graphs = decode_graphs.CudaGraphBackend(capturer, forward, fused=fused, kv_cache=kv_cache)

    def release_graphs() -> None:
        for graphs in (t3_graphs, flow_graphs, vocoder_graphs):
            graphs.release_graphs()
        for pool in (capturer, rendering):
            pool.release()

    placement.release_graphs = release_graphs
    return t3_graphs


def _compiled(model: t3_model.T3) -> StepFn | None:
    try:
        return decode_graphs.compiled_step(model)
    except DEVICE_ERRORS as error:
        failure = "compilation of the t3 step failed"
        log.warning("%s", cuda_graphs.eager_from_now_on(failure, error))
        return None
