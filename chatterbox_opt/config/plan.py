"""How this machine will do it: Profile (a wish) and Hardware (what is there) become a Plan.

Knows environment, precedence and what hardware can do. Knows nothing of weights or requests.
A wish that the machine cannot meet is lowered, with a reason that the person can read; nothing
that would change what is said is ever lowered in silence. Imports no torch.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from chatterbox_opt.config.hardware import (
    AUTO,
    BFLOAT16_CAPABILITY,
    HALF_CAPABILITY,
    KERNELS,
    Hardware,
    format_capability,
    kernel_feature,
)
from chatterbox_opt.config.profile import (
    COMPILE,
    INT8_FLOW_COSTS,
    KV_CACHE,
    OFFLOAD,
    QUANTIZED,
    T3_DTYPES,
    Profile,
    check_keys,
    load_profile,
    stages_of,
)
from chatterbox_opt.errors import ProfileError

WIDER = {"int4": "int8", "int8": "bfloat16", "bfloat16": "float32"}  # the next best on a processor
BIG_MIB, MIDDLE_MIB = 15_000, 7_500  # total memory from which rtx4090 and rtx3080 are meant
ROOM_MIB = 4_000  # free memory that all stages in half precision need, with room to work
CPU_SLOTS, CUDA_SLOTS = 12, 32
SLOT_MIB = 280  # keys and values of one utterance in half precision
INT8_SLOT_MIB = 150  # and in int8, with their scales
INLINE, OVERLAPPED = "here", "beside"  # who makes the sound of a batch
NOT_ON_MPS = "integer matrices are for processors and CUDA cards"

# environment variable -> profile key, and its words -> values
ENVIRONMENT: dict[str, tuple[str, dict[str, str]]] = {
    "CHATTERBOX_DTYPE": ("dtype", {name: name for name in T3_DTYPES}),
    "CHATTERBOX_COMPILATION": ("compile", {"true": "cudagraphs", "false": "none"}),
    "CHATTERBOX_CPU_OFFLOAD": ("offload", {"true": "stages", "false": "none"}),
    "CHATTERBOX_KV_CACHE": ("kv_cache", {name: name for name in KV_CACHE}),
}
DISABLE_OPTIMIZATION = "DISABLE_OPTIMIZATION"
GPU_KERNELS = "CHATTERBOX_GPU_KERNELS"  # false: PyTorch's operations in place of our own kernels
SWITCHED_OFF = {"true": "", "false": "yes"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What this process does, with the reasons.

    Attributes:
        device: "cuda", "mps" or "cpu".
        profile: the name of the profile it started from.
        t3, flow: dtype of the stored weights; the vocoder is always float32.
        compute: dtype of the arithmetic in t3 and flow where it differs, or "".
        compile, offload, kv_cache: see Profile.
        slots: utterances of a batch that t3 works at together.
        sound: "beside" if flow and vocoder of a batch's last lines work while t3 reads the next,
            "here" if they take turns with it.
        fused: stages that kernels of our own serve on a card.
        optimized: False runs plain upstream.
        reasons: sentences: where each value came from, and what was lowered.
    """

    device: str
    profile: str
    t3: str
    flow: str
    compute: str
    compile: str
    offload: str
    kv_cache: str = "auto"
    slots: int = 1
    sound: str = INLINE
    fused: tuple[str, ...] = ()
    optimized: bool = True
    reasons: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for people: device, dtype, compilation, offload."""
        if not self.optimized:
            return f"device {self.device} · plain Chatterbox ({DISABLE_OPTIMIZATION})"
        dtype = self.t3 if self.t3 == self.flow else f"t3 {self.t3}, flow {self.flow}"
        if self.compute:
            dtype += f" stored, {self.compute} computed"
        kv_cache = "" if self.kv_cache == "auto" else f"kv cache {self.kv_cache} · "
        return (
            f"device {self.device} · dtype {dtype} · compile {self.compile} · "
            f"offload {self.offload} · {kv_cache}profile {self.profile}"
        )


def choose_profile(hardware: Hardware) -> tuple[str, str]:
    """Pick a shipped profile for a machine; return its name and the reason."""
    if hardware.device != "cuda":
        return ("cpu", "no CUDA card") if hardware.device == "cpu" else ("dev", "MPS runs eager")
    facts = f"{hardware.name}, {hardware.free_mib:,} of {hardware.total_mib:,} MiB free"
    if hardware.capability < HALF_CAPABILITY:
        return (
            "gtx1080",
            f"{facts}, compute capability {format_capability(hardware.capability)} below 7.0",
        )
    if hardware.free_mib < ROOM_MIB or hardware.total_mib < MIDDLE_MIB:
        return "memory-limited", f"{facts}: too little for all stages at once"
    if hardware.total_mib >= BIG_MIB:
        return "rtx4090", f"{facts}: room for everything"
    return "rtx3080", f"{facts}: between 8 and 16 GB"


def resolve(
    profile: str,
    hardware: Hardware,
    overrides: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Plan:
    """Turn wishes into a plan for this machine.

    Args:
        profile: a name, a YAML path, or "auto".
        overrides: ``dtype``, ``compile``, ``offload``, ``kv_cache`` from the command line; they
            win.
        environment: CHATTERBOX_* and DISABLE_OPTIMIZATION; they win over the profile.

    Raises:
        ProfileError: an unknown profile, key or value.
    """
    environment = os.environ if environment is None else environment
    if _setting(environment, GPU_KERNELS, SWITCHED_OFF):
        hardware = _without_kernels(hardware)
    why = "asked for"
    if profile == AUTO:
        profile, why = choose_profile(hardware)
    wish = load_profile(profile)
    dtype = wish.t3 if wish.t3 == wish.flow else f"t3 {wish.t3}, flow {wish.flow}"
    kept = ("compile", "offload", "kv_cache")
    values = {"dtype": dtype} | {key: getattr(wish, key) for key in kept}
    sources = dict.fromkeys(values, f"profile {profile}")
    for key, value, source in _override_settings(environment, overrides or {}):
        fields = stages_of(value) | {"compute": ""} if key == "dtype" else {key: value}
        wish = replace(wish, **fields)
        values[key], sources[key] = value, source
    reasons = [f"profile {profile}: {why}"]
    reasons += [f"{key} {value}: from {sources[key]}" for key, value in values.items()]
    wish, optimized = _downgrade(wish, hardware, reasons), not optimization_disabled(environment)
    slots = slots_for(hardware, wish)
    return Plan(
        device=hardware.device,
        profile=profile,
        t3=wish.t3,
        flow=wish.flow,
        compute=wish.compute,
        compile=wish.compile,
        offload=wish.offload,
        kv_cache=wish.kv_cache,
        slots=slots,
        sound=_renderer(hardware, wish, slots, reasons),
        fused=_fused_stages(hardware, wish, reasons) if optimized else (),
        optimized=optimized,
        reasons=tuple(reasons),
    )


def _without_kernels(hardware: Hardware) -> Hardware:
    """The same GPU without kernels of our own; none of them is tried."""
    names = (kernel_feature(stage, dtype) for stage, dtypes in KERNELS.items() for dtype in dtypes)
    off = dict.fromkeys(names, f"switched off by {GPU_KERNELS}")
    return replace(hardware, unsupported=ChainMap(off, cast(dict[str, str], hardware.unsupported)))


def _fused_stages(hardware: Hardware, wish: Profile, reasons: list[str]) -> tuple[str, ...]:
    """Which stages have kernels of our own, in the dtypes that they will have, healed ones too."""
    if hardware.device != "cuda":
        return ()
    dtypes = {"t3": {compute_dtype(wish), "float32"}, "flow": {wish.compute or wish.flow}}
    if wish.compile == "none" or dtypes["flow"] == {"float32"}:
        del dtypes["flow"]  # launched one by one they win nothing, and float32 has none
    found = []
    for stage, used in dtypes.items():
        names = [kernel_feature(stage, dtype) for dtype in sorted(used)]
        why = next((why for name in names if (why := hardware.unsupported.get(name))), "")
        if why:
            reasons.append(f"{stage} by PyTorch's operations: {why}")
        else:
            found.append(stage)
    return tuple(found)


def compute_dtype(wish: Profile) -> str:
    """The dtype of the values between t3's matrices on a card."""
    return wish.compute or (wish.flow if wish.t3 in QUANTIZED else wish.t3)


def slots_for(hardware: Hardware, wish: Profile) -> int:
    """How many utterances of a batch t3 works at together: what free memory has room for.

    A slot is the keys and values of two rows of 1,200 positions at the true shapes. Without a card
    the cost of a step grows with the rows, and twelve slots are where little more is won.
    """
    if hardware.device != "cuda":
        return CPU_SLOTS
    wide = compute_dtype(wish) == "float32"
    room = hardware.free_mib - (2 * ROOM_MIB if wide else ROOM_MIB)
    most, size = CUDA_SLOTS, 2 * SLOT_MIB if wide else SLOT_MIB
    if wish.kv_cache == "int8":
        most, size = 2 * CUDA_SLOTS, INT8_SLOT_MIB
    return max(1, min(most, room // size))


def _renderer(hardware: Hardware, wish: Profile, slots: int, reasons: list[str]) -> str:
    """Beside t3 where a card does both at once; a processor's cores are busy with either."""
    if hardware.device != "cuda" or wish.offload != "none" or slots == 1:
        return INLINE
    reasons.append("sound beside t3: the card holds all stages, and lines of a batch overlap")
    return OVERLAPPED


def optimization_disabled(environment: Mapping[str, str]) -> bool:
    """Whether DISABLE_OPTIMIZATION asks for plain upstream.

    Raises:
        ProfileError: a value other than true or false.
    """
    return _setting(environment, DISABLE_OPTIMIZATION, {"true": "yes", "false": ""}) == "yes"


def check_settings(
    profile: str, overrides: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Raise ProfileError for what is wrong whatever the machine; needs no torch."""
    if profile != AUTO:
        load_profile(profile)
    optimization_disabled(environment)
    _setting(environment, GPU_KERNELS, SWITCHED_OFF)
    _override_settings(environment, overrides)


def _override_settings(
    environment: Mapping[str, str], overrides: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Key, value and source of all that overrides a profile, the strongest last."""
    words = []
    for variable, (key, values) in ENVIRONMENT.items():
        if value := _setting(environment, variable, values):
            words.append((key, value, variable))
    allowed = {"dtype": T3_DTYPES, "compile": COMPILE, "offload": OFFLOAD, "kv_cache": KV_CACHE}
    check_keys("options", overrides, allowed)
    for key, value in overrides.items():
        if value not in allowed[key]:
            raise ProfileError(f"{key} is '{value}'; known: {', '.join(allowed[key])}")
        words.append((key, value, "the command line"))
    return words


def _setting(environment: Mapping[str, str], variable: str, values: Mapping[str, str]) -> str:
    given = environment.get(variable, "").strip().lower()
    given = {"1": "true", "0": "false"}.get(given, given)
    if given and given not in values:
        raise ProfileError(f"{variable} is '{given}'; known: {', '.join(values)}")
    return values.get(given, "")


def _downgrade(wish: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """Replace what the machine cannot do, and say so."""

    if wish.compile == "cudagraphs" and hardware.device != "cuda":
        wish = replace(wish, compile="none")
        reasons.append("compile none: cudagraphs needs a CUDA card")
    if hardware.device != "cuda":
        if wish.kv_cache != "auto":
            wish = replace(wish, kv_cache="auto")
            reasons.append("kv_cache auto: int8 keys and values are for CUDA GPUs")
        wish = _downgrade_dtypes(wish, hardware, reasons)
        if wish.compile != "none" and hardware.device == "mps":
            reasons.append("compile none: MPS runs eager")
            wish = replace(wish, compile="none")
        if wish.compile == "inductor" and wish.t3 in QUANTIZED:
            reasons.append("compile none: a step over integers is one call already")
            wish = replace(wish, compile="none")
        if wish.offload != "none":
            reasons.append("offload none: there is no card to move stages off")
            wish = replace(wish, offload="none")
        return wish
    return _downgrade_for_gpu(wish, hardware, reasons)


def _downgrade_for_gpu(wish: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """The dtypes that a card has."""
    if wish.t3 == "int4":
        wish = replace(wish, t3="int8")
        reasons.append("t3 int8: int4 matrices are for the processor")
    if wish.flow == "int8":
        wish = replace(wish, flow="bfloat16")  # computed, not waited for: bytes win nothing
    if hardware.capability < BFLOAT16_CAPABILITY and "bfloat16" in (wish.t3, wish.flow):
        half = {"bfloat16": "float16"}
        wish = replace(wish, t3=half.get(wish.t3, wish.t3), flow=half.get(wish.flow, wish.flow))
        reasons.append("dtype float16: bfloat16 needs compute capability 8.0")
    if wish.t3 == "int8" and (why := hardware.unsupported.get(kernel_feature("t3", wish.flow))):
        wish = replace(wish, t3=wish.flow)
        reasons.append(f"t3 {wish.flow}: {why}")
    if hardware.capability < BFLOAT16_CAPABILITY and wish.compute == "bfloat16":
        wish = replace(wish, compute="float32")
        reasons.append("computed in float32: bfloat16 needs compute capability 8.0")
    if (
        hardware.capability < HALF_CAPABILITY
        and "float16" in (wish.t3, wish.flow)
        and not wish.compute
    ):
        wish = replace(wish, compute="float32")
        reasons.append("computed in float32: float16 arithmetic is slow below capability 7.0")
    if wish.t3 in QUANTIZED:
        reasons.append(f"t3 {wish.t3}: weights only, the rest {wish.flow}")
    if wish.kv_cache == "int8" and wish.compile == "inductor":
        wish = replace(wish, kv_cache="auto")
        reasons.append("kv_cache auto: a step compiled by inductor has no int8 keys and values")
    return wish


def _downgrade_dtypes(wish: Profile, hardware: Hardware, reasons: list[str]) -> Profile:
    """The narrowest dtypes up to those wished for that an MPS device or a processor has."""
    if hardware.device == "mps":
        if wish.t3 not in QUANTIZED and wish.flow != "int8":
            return wish
        reasons.append(f"dtype float16: {NOT_ON_MPS}")
        return replace(wish, t3="float16", flow="float16")
    if "float16" in (wish.t3, wish.flow):
        wide = {"float16": "float32"}
        t3, flow = (wide.get(dtype, dtype) for dtype in (wish.t3, wish.flow))
        wish = replace(wish, t3=t3, flow=flow, compute="")
        reasons.append("dtype float32: a processor has no fast float16 arithmetic")
    for stage in ("t3", "flow"):
        while why := _unsupported(hardware, stage, dtype := getattr(wish, stage)):
            wish = replace(wish, **{stage: WIDER[dtype]})
            reasons.append(f"{stage} {WIDER[dtype]}: {why}")
    if wish.t3 in QUANTIZED:
        reasons.append(f"t3 {wish.t3}: {QUANTIZED[wish.t3]}")
    if wish.flow == "int8":
        reasons.append(f"flow int8: {INT8_FLOW_COSTS}")
    return wish


def _unsupported(hardware: Hardware, stage: str, dtype: str) -> str:
    """Why a stage cannot have a dtype on a processor, or ""; an int8 flow is bfloat16 besides."""
    names = ("int8 flow", "int8", "bfloat16") if (stage, dtype) == ("flow", "int8") else (dtype,)
    return next((why for name in names if (why := hardware.unsupported.get(name))), "")
