"""Replaces requested settings that the hardware does not support, and records the reason.

Responsible for which dtypes, compilation and offload modes each kind of device supports. Not
responsible for where a setting was requested (settings.py). No downgrade changes the output without
a reason that is shown to the user. Imports no torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chatterbox_opt.config.hardware import (
    BFLOAT16_CAPABILITY,
    BFLOAT16_VOCODER,
    HALF_CAPABILITY,
    Hardware,
    kernel_feature,
)
from chatterbox_opt.config.profile import (
    BFLOAT16_VOCODER_COSTS,
    INT8_FLOW_COSTS,
    QUANTIZED,
    Profile,
)

WIDER = {"int4": "int8", "int8": "bfloat16", "bfloat16": "float32"}  # the next best on a CPU
NOT_ON_MPS = "integer matrices are for CPUs and CUDA GPUs"
_NO_FLOAT16 = "CPUs have no fast float16 arithmetic"


def downgrade(requested: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """Return the supported settings nearest to ``requested``; append a reason for each change."""
    if requested.compile == "cudagraphs" and hardware.device != "cuda":
        requested = replace(requested, compile="none")
        reasons.append("compile none: cudagraphs needs a CUDA GPU")
    if requested.vocoder == "bfloat16" and (why := _no_bfloat16_vocoder(hardware)):
        requested = replace(requested, vocoder="float32")
        reasons.append(f"vocoder float32: {why}")
    if hardware.device != "cuda":
        if requested.kv_cache != "auto":
            requested = replace(requested, kv_cache="auto")
            reasons.append("kv_cache auto: int8 keys and values are for CUDA GPUs")
        requested = _downgrade_dtypes(requested, hardware, reasons)
        if requested.compile != "none" and hardware.device == "mps":
            reasons.append("compile none: MPS runs eager")
            requested = replace(requested, compile="none")
        if requested.compile == "inductor" and requested.t3 in QUANTIZED:
            reasons.append("compile none: the int8 decode step is one compiled call already")
            requested = replace(requested, compile="none")
        if requested.offload != "none":
            reasons.append("offload none: only a GPU has memory to move stages out of")
            requested = replace(requested, offload="none")
        return requested
    return _downgrade_for_gpu(requested, hardware, reasons)


def _downgrade_for_gpu(requested: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """Dtypes and compilation for a CUDA GPU."""
    if requested.t3 == "int4":
        requested = replace(requested, t3="int8")
        reasons.append("t3 int8: int4 matrices are for CPUs")
    if requested.flow == "int8":
        requested = replace(requested, flow="bfloat16")
        reasons.append("flow bfloat16: bound by arithmetic, where int8 weights gain nothing")
    if hardware.capability < BFLOAT16_CAPABILITY and "bfloat16" in (requested.t3, requested.flow):
        half = {"bfloat16": "float16"}
        t3, flow = (half.get(dtype, dtype) for dtype in (requested.t3, requested.flow))
        requested = replace(requested, t3=t3, flow=flow)
        reasons.append("dtype float16: bfloat16 needs compute capability 8.0")
    feature = kernel_feature("t3", requested.flow)
    if requested.t3 == "int8" and (why := hardware.unsupported.get(feature)):
        requested = replace(requested, t3=requested.flow)
        reasons.append(f"t3 {requested.flow}: {why}")
    if hardware.capability < BFLOAT16_CAPABILITY and requested.compute == "bfloat16":
        requested = replace(requested, compute="float32")
        reasons.append("computed in float32: bfloat16 needs compute capability 8.0")
    if (
        hardware.capability < HALF_CAPABILITY
        and "float16" in (requested.t3, requested.flow)
        and not requested.compute
    ):
        requested = replace(requested, compute="float32")
        reasons.append("computed in float32: float16 arithmetic is slow below capability 7.0")
    if requested.t3 in QUANTIZED:
        reasons.append(f"t3 {requested.t3}: weights only, the rest {requested.flow}")
    if requested.kv_cache == "int8" and requested.compile == "inductor":
        requested = replace(requested, kv_cache="auto")
        reasons.append("kv_cache auto: a step compiled by inductor has no int8 keys and values")
    return requested


def _downgrade_dtypes(requested: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """The narrowest supported dtypes, not narrower than requested, of a CPU or an MPS device."""
    if hardware.device == "mps":
        if requested.t3 not in QUANTIZED and requested.flow != "int8":
            return requested
        reasons.append(f"dtype float16: {NOT_ON_MPS}")
        return replace(requested, t3="float16", flow="float16")
    if "float16" in (requested.t3, requested.flow):
        wide = {"float16": "float32"}
        t3, flow = (wide.get(dtype, dtype) for dtype in (requested.t3, requested.flow))
        requested = replace(requested, t3=t3, flow=flow, compute="")
        reasons.append(f"dtype float32: {_NO_FLOAT16}")
    for stage in ("t3", "flow"):
        while why := _unsupported(hardware, stage, dtype := getattr(requested, stage)):
            wider: dict[str, Any] = {stage: WIDER[dtype]}
            requested = replace(requested, **wider)
            reasons.append(f"{stage} {WIDER[dtype]}: {why}")
    requested = _downgrade_compute(requested, hardware, reasons)
    if requested.t3 in QUANTIZED:
        reasons.append(f"t3 {requested.t3}: {QUANTIZED[requested.t3]}")
    if requested.flow == "int8":
        reasons.append(f"flow int8: {INT8_FLOW_COSTS}")
    if requested.vocoder == "bfloat16":
        reasons.append(f"vocoder bfloat16: {BFLOAT16_VOCODER_COSTS}")
    return requested


def _downgrade_compute(requested: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """A dtype in which a CPU can compute; "" where it is that of the weights."""
    why = _NO_FLOAT16 if requested.compute == "float16" else ""
    if why := why or hardware.unsupported.get(requested.compute, ""):
        requested = replace(requested, compute="float32")
        reasons.append(f"computed in float32: {why}")
    is_same = requested.compute == requested.t3 == requested.flow
    return replace(requested, compute="") if is_same else requested


def _no_bfloat16_vocoder(hardware: Hardware) -> str:
    if hardware.device != "cpu":
        return "bfloat16 products in it are for CPUs"
    return hardware.unsupported.get(BFLOAT16_VOCODER, "")


def _unsupported(hardware: Hardware, stage: str, dtype: str) -> str:
    """Why a CPU does not support a dtype for a stage, or ""; an int8 flow also needs bfloat16."""
    names = ("int8 flow", "int8", "bfloat16") if (stage, dtype) == ("flow", "int8") else (dtype,)
    return next((why for name in names if (why := hardware.unsupported.get(name))), "")
