"""The plan: what this process runs, decided once from a profile and the hardware.

Responsible for choosing a profile, for the precedence of settings, and for every decision that
follows from them: dtypes, weight layouts, kernels, slots. Not responsible for weights or requests;
engine/build.py executes a plan and decides nothing. Imports no torch.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from chatterbox_opt.config.downgrade import downgrade
from chatterbox_opt.config.hardware import (
    AUTO,
    BFLOAT16_VOCODER,
    HALF_CAPABILITY,
    KERNELS,
    ONEDNN,
    Hardware,
    format_capability,
    kernel_feature,
)
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.config.profile import OWN_FLOW, QUANTIZED, Profile, load_profile, stages_of
from chatterbox_opt.config.settings import (
    COMMAND_LINE,
    DISABLE_OPTIMIZATION,
    GPU_KERNELS,
    gpu_kernels_disabled,
    optimization_disabled,
    override_settings,
)

BIG_MIB, MIDDLE_MIB = 15_000, 7_500  # minimum total memory for rtx4090 and for rtx3080
RESERVED_MIB = 4_000  # GPU memory of all stages in half precision, with their activations
CPU_SLOTS, CUDA_SLOTS = 12, 32
# Keys and values of one sequence (30 layers of 16 heads of 64, two rows) in half precision, and in
# int8 with their scales, when a cache of 1,024 positions grows to 1,536: two new buffers and an old
SLOT_MIB, INT8_SLOT_MIB = 480, 248
INLINE, OVERLAPPED = "inline", "overlapped"  # how a batch's audio is rendered
PYTORCH, TRITON, NUMBA = "pytorch", "triton", "numba"  # whose kernels a stage runs
PLAIN, ONEDNN_LAYOUT, WEIGHT_ONLY = "plain", "onednn", "weight-only"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage is stored and computed.

    Attributes:
        storage: dtype of the weights: float32, float16, bfloat16, int8 or int4.
        compute: dtype of the arithmetic between the matrices.
        layout: of the matrices (layers/weight_layout.py): "plain"; on a CPU "onednn" (oneDNN's
            blocked layout), "bfloat16" (the same for few rows), "int8" or "int4" (packed for
            kernels/cpu/int8_gemm.py; in the flow only the transformers, the rest is "onednn");
            on a GPU "weight-only" (int8, multiplied as ``compute``).
        kernels: "pytorch", "triton" (kernels/cuda) or "numba" (kernels/cpu).
    """

    storage: str = "float32"
    compute: str = "float32"
    layout: str = PLAIN
    kernels: str = PYTORCH

    @property
    def narrowed(self) -> bool:
        """Whether plain weights are stored in a narrower dtype than they are multiplied in."""
        return self.layout == PLAIN and self.storage != self.compute


@dataclass(frozen=True, slots=True)
class Plan:
    """What this process runs, with the reasons.

    Attributes:
        device: "cuda", "mps" or "cpu".
        profile: the name of the profile that it is based on.
        t3, flow, vocoder: how each stage is stored and computed.
        compile, offload, kv_cache, flow_model, hops, large_model_hops: see ``Profile``.
        slots: sequences of a batch that T3 decodes together.
        rendering: "overlapped" if flow and vocoder run while T3 decodes the next sequences of a
            batch, "inline" if they alternate with it.
        optimized: False runs plain upstream.
        reasons: sentences: where each value came from, and what was downgraded.
        warnings: sentences: settings of the command line or the environment that were downgraded.
    """

    device: str
    profile: str
    t3: StagePlan
    flow: StagePlan
    vocoder: StagePlan = StagePlan()
    compile: str = "none"
    offload: str = "none"
    kv_cache: str = "auto"
    flow_model: str = OWN_FLOW
    hops: HopSchedule = HopSchedule()
    large_model_hops: HopSchedule = HopSchedule()
    slots: int = 1
    rendering: str = INLINE
    optimized: bool = True
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def narrowed_compute(self) -> str:
        """The compute dtype of weights that are stored in a narrower one, or ""."""
        return next((stage.compute for stage in (self.t3, self.flow) if stage.narrowed), "")

    @property
    def precision(self) -> tuple[str, ...]:
        """What decides the audio of a seed on one kind of device; manifests hash it."""
        if not self.optimized:
            return ("plain",)
        stages = (self.t3.storage, self.flow.storage, self.narrowed_compute)
        return stages if self.vocoder == StagePlan() else (*stages, BFLOAT16_VOCODER)

    def hop_schedule(self, config: ModelConfig) -> HopSchedule:
        """Of a model's streams with low latency."""
        return self.large_model_hops if config.t3.is_large else self.hops

    @property
    def triton_stages(self) -> tuple[str, ...]:
        """Names of the stages that our GPU kernels run."""
        stages = {"t3": self.t3, "flow": self.flow}
        return tuple(name for name, stage in stages.items() if stage.kernels == TRITON)

    def summary(self) -> str:
        """One line for display: device, dtype, compilation, offload, profile."""
        if not self.optimized:
            return f"device {self.device} · plain Chatterbox ({DISABLE_OPTIMIZATION})"
        dtype = _dtypes(self.t3.storage, self.flow.storage)
        if self.narrowed_compute:
            dtype += f" stored, {self.narrowed_compute} computed"
        others = "" if self.kv_cache == "auto" else f"kv cache {self.kv_cache} · "
        others += "" if self.flow_model == OWN_FLOW else f"flow of {self.flow_model} · "
        return (
            f"device {self.device} · dtype {dtype} · compile {self.compile} · "
            f"offload {self.offload} · {others}profile {self.profile}"
        )


def _dtypes(t3: str, flow: str) -> str:
    return t3 if t3 == flow else f"t3 {t3}, flow {flow}"


def choose_profile(hardware: Hardware) -> tuple[str, str]:
    """Pick a shipped profile for a machine; return its name and the reason."""
    if hardware.device != "cuda":
        return ("cpu", "no CUDA GPU") if hardware.device == "cpu" else ("dev", "MPS runs eager")
    facts = f"{hardware.name}, {hardware.free_mib:,} of {hardware.total_mib:,} MiB free"
    if hardware.capability < HALF_CAPABILITY:
        capability = format_capability(hardware.capability)
        return "gtx1080", f"{facts}, compute capability {capability} below 7.0"
    if hardware.free_mib < RESERVED_MIB or hardware.total_mib < MIDDLE_MIB:
        return "memory-limited", f"{facts}: too little for all stages at once"
    if hardware.total_mib >= BIG_MIB:
        return "rtx4090", f"{facts}: enough for everything"
    return "rtx3080", f"{facts}: between 8 and 16 GB"


def resolve(
    profile: str,
    hardware: Hardware,
    overrides: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Plan:
    """Turn the requested settings into a plan for this machine.

    Args:
        profile: a name, a YAML path, or "auto".
        overrides: see ``override_settings``; they override everything else.
        environment: CHATTERBOX_* and DISABLE_OPTIMIZATION; they override the profile.

    Raises:
        ProfileError: an unknown profile, key or value.
    """
    environment = os.environ if environment is None else environment
    if gpu_kernels_disabled(environment):
        hardware = _without_gpu_kernels(hardware)
    optimized = not optimization_disabled(environment)
    requested, reasons = _requested(profile, hardware, overrides or {}, environment)
    sources = len(reasons)
    supported = downgrade(requested, hardware, reasons)
    explicit = override_settings(environment, overrides or {}) if optimized else []
    warnings = _downgraded(explicit, requested, supported, reasons[sources:])
    slots = slots_for(hardware, supported)
    rendering = _rendering(hardware, supported, slots, reasons)
    fused = _fused_stages(hardware, supported, reasons) if optimized else ()
    return Plan(
        device=hardware.device,
        profile=requested.name,
        t3=_t3(supported, hardware, fused="t3" in fused),
        flow=_flow(supported, hardware, fused="flow" in fused),
        vocoder=StagePlan(supported.vocoder, supported.vocoder),
        compile=supported.compile,
        offload=supported.offload,
        kv_cache=supported.kv_cache,
        hops=supported.schedule(large=False),
        large_model_hops=supported.schedule(large=True),
        flow_model=supported.flow_model,
        slots=slots,
        rendering=rendering,
        optimized=optimized,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
    )


def _downgraded(
    explicit: Sequence[tuple[str, str, str]],
    requested: Profile,
    supported: Profile,
    reasons: Sequence[str],
) -> list[str]:
    """A sentence for each explicit setting that this machine does not support.

    The dtype is T3's: that an int8 T3 has a wider flow on many machines is no downgrade of it.

    Args:
        explicit: key, value and source of each, lowest precedence first.
        reasons: of all downgrades; they begin with the key (or the stage) and the new value.
    """
    warnings = []
    for key, (value, source) in {key: (value, source) for key, value, source in explicit}.items():
        field = "t3" if key == "dtype" else key
        used = getattr(supported, field)
        if used != getattr(requested, field):
            why = next((r for r in reasons if r.startswith((f"{key} ", f"{field} "))), "")
            option = f"--{key.replace('_', '-')}" if source == COMMAND_LINE else source
            warnings.append(f"{option} {value}: using {used} ({why.partition(': ')[2]})")
    return warnings


def _requested(
    name: str, hardware: Hardware, overrides: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[Profile, list[str]]:
    """The profile with environment and overrides applied, and where each value came from."""
    why = "requested"
    if name == AUTO:
        name, why = choose_profile(hardware)
    profile = load_profile(name)
    values = {"dtype": _dtypes(profile.t3, profile.flow)}
    keys = ("compile", "offload", "kv_cache", "flow_model")
    values |= {key: value for key in keys if (value := getattr(profile, key)) != OWN_FLOW}
    sources = dict.fromkeys(values, f"profile {name}")
    for key, value, source in override_settings(environment, overrides):
        stages = stages_of(value) if key == "dtype" else {}
        fields: dict[str, Any] = stages | {"compute": ""} if stages else {key: value}
        profile = replace(profile, **fields)
        values[key], sources[key] = value, source
    reasons = [f"profile {name}: {why}"]
    reasons += [f"{key} {value}: from {sources[key]}" for key, value in values.items()]
    return profile, reasons


def _t3(profile: Profile, hardware: Hardware, *, fused: bool) -> StagePlan:
    """T3's decode step reads every matrix for few rows: the layout follows the dtype."""
    kernels = TRITON if fused else PYTORCH
    if profile.t3 in QUANTIZED:
        if hardware.device == "cpu":
            return StagePlan(profile.t3, "float32", layout=profile.t3, kernels=NUMBA)
        return StagePlan(profile.t3, t3_compute(profile), layout=WEIGHT_ONLY, kernels=kernels)
    layout = PLAIN
    if _has_onednn(hardware):
        if t3_compute(profile) == "bfloat16":
            layout = "bfloat16"
        # inductor needs plain layers
        elif not profile.compute and (profile.t3, profile.compile) == ("float32", "none"):
            layout = ONEDNN_LAYOUT
    return StagePlan(profile.t3, t3_compute(profile), layout, kernels)


def _flow(profile: Profile, hardware: Hardware, *, fused: bool) -> StagePlan:
    """The flow multiplies many rows; only its transformers are int8, with bfloat16 activations."""
    if profile.flow == "int8":
        return StagePlan("int8", "bfloat16", layout="int8", kernels=NUMBA)
    blocked = _has_onednn(hardware) and not profile.compute
    layout = ONEDNN_LAYOUT if blocked else PLAIN
    return StagePlan(profile.flow, flow_compute(profile), layout, TRITON if fused else PYTORCH)


def _has_onednn(hardware: Hardware) -> bool:
    return hardware.device == "cpu" and ONEDNN not in hardware.unsupported


def t3_compute(profile: Profile) -> str:
    """T3's compute dtype; not for integer matrices on a CPU, which compute in float32."""
    return profile.compute or (profile.flow if profile.t3 in QUANTIZED else profile.t3)


def flow_compute(profile: Profile) -> str:
    """The flow's compute dtype; not for an int8 flow, which computes in bfloat16."""
    return profile.compute or profile.flow


def _without_gpu_kernels(hardware: Hardware) -> Hardware:
    """The same GPU with all our kernels marked as unsupported, so that none is compiled."""
    names = (kernel_feature(stage, dtype) for stage, dtypes in KERNELS.items() for dtype in dtypes)
    off = dict.fromkeys(names, f"switched off by {GPU_KERNELS}")
    return replace(hardware, unsupported=ChainMap(off, cast(dict[str, str], hardware.unsupported)))


def _fused_stages(hardware: Hardware, profile: Profile, reasons: list[str]) -> tuple[str, ...]:
    """Stages whose dtypes our GPU kernels all support (T3's float32 retry after NaN/Inf too)."""
    if hardware.device != "cuda":
        return ()
    dtypes = {"t3": {t3_compute(profile), "float32"}, "flow": {flow_compute(profile)}}
    if profile.compile == "none" or dtypes["flow"] == {"float32"}:
        del dtypes["flow"]  # without CUDA graphs they are not faster, and none is for float32
    fused = []
    for stage, used in dtypes.items():
        names = [kernel_feature(stage, dtype) for dtype in sorted(used)]
        why = next((why for name in names if (why := hardware.unsupported.get(name))), "")
        if why:
            reasons.append(f"{stage} by PyTorch's operations: {why}")
        else:
            fused.append(stage)
    return tuple(fused)


def slots_for(hardware: Hardware, profile: Profile) -> int:
    """How many sequences of a batch T3 decodes together; on a GPU, as many as fit in free memory.

    A sequence of the full-size model ends before 1,536 positions; memory must suffice while the
    cache grows to as many (``StaticKVCache.reserve``). On a CPU the cost of a step grows with its
    rows, and more than twelve slots gain little.
    """
    if hardware.device != "cuda":
        return CPU_SLOTS
    wide = t3_compute(profile) == "float32"
    available = hardware.free_mib - (2 * RESERVED_MIB if wide else RESERVED_MIB)
    limit, size = CUDA_SLOTS, 2 * SLOT_MIB if wide else SLOT_MIB
    if profile.kv_cache == "int8":
        limit, size = 2 * CUDA_SLOTS, INT8_SLOT_MIB
    return max(1, min(limit, available // size))


def _rendering(hardware: Hardware, profile: Profile, slots: int, reasons: list[str]) -> str:
    """Overlapped on a GPU that holds all stages; on a CPU both would compete for the cores."""
    if hardware.device != "cuda" or profile.offload != "none" or slots == 1:
        return INLINE
    reasons.append("rendering overlaps with t3: the GPU holds all stages")
    return OVERLAPPED
