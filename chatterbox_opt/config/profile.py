"""Profiles: requested settings from a YAML file, validated.

Responsible for keys, values and the folder of shipped profiles. Not responsible for what the
hardware supports (plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatterbox_opt.config.bounded_yaml import read_yaml, shortened
from chatterbox_opt.config.hardware import AUTO
from chatterbox_opt.config.hop_schedule import DEFAULT_SIZES, HopSchedule
from chatterbox_opt.errors import InputError, ProfileError

DTYPES = ("float32", "float16", "bfloat16")
QUANTIZED = {  # accuracy of each on CPU (docs/performance-log.md)
    "int8": "99.3 % of T3's tokens equal float32's, KL divergence 4.0e-4, on the built-in model",
    "int4": "96.4 % of T3's tokens equal float32's, KL divergence 8.2e-3, on the built-in model",
}
T3_DTYPES, FLOW_DTYPES = (*DTYPES, *QUANTIZED), (*DTYPES, "int8")
VOCODER_DTYPES = ("float32", "bfloat16")
STAGE_DTYPES = {"t3": T3_DTYPES, "flow": FLOW_DTYPES, "vocoder": VOCODER_DTYPES}
INT8_FLOW_COSTS = "log-mel cosine to float32 is 0.99998 on the built-in model; bfloat16 has 0.99999"
BFLOAT16_VOCODER_COSTS = "an error 43 dB below the signal of the built-in model"
COMPILE = ("none", "cudagraphs", "inductor")
OFFLOAD = ("none", "stages", "all-but-active")  # from most GPU memory to least
KV_CACHE = ("auto", "int8")  # of T3; auto is T3's compute dtype
OWN_FLOW, TURBO_FLOW = "own", "turbo"  # whose flow; anything else is a directory
HOPS = ("hops", "large_model_hops")
STREAM = (*HOPS, "first_steps", "large_model_first_steps")
FLOW_MODELS = f"known: {OWN_FLOW}, {TURBO_FLOW}, or a directory with Turbo's flow"
MAX_BYTES = 64 << 10  # of a file; the shipped ones have less than 1 KiB
MAX_DEPTH = 2  # of mappings: the profile, and dtypes by stage


@dataclass(frozen=True, slots=True)
class Profile:
    """Requested settings of one profile.

    Attributes:
        name: of the shipped profile, or the path of a file.
        description: the hardware that it is for.
        t3: dtype of T3's weights, one of ``T3_DTYPES``.
        flow: dtype of the flow's weights, one of ``FLOW_DTYPES``; int8 applies to its transformer
            layers, the others are bfloat16.
        vocoder: one of ``VOCODER_DTYPES``; bfloat16 applies to products of layers that decide no
            phases, on a CPU. The others are float32.
        compute: compute dtype if it differs from the weights' dtype, or "".
        compile: how the T3 step is compiled, one of ``COMPILE``.
        offload: one of ``OFFLOAD``: "stages" moves stages to the GPU one after the other and
            prefetches the next; "all-but-active" keeps only the running one there.
        kv_cache: dtype of T3's KV cache on a GPU, one of ``KV_CACHE``.
        flow_model: whose flow and vocoder run: ``OWN_FLOW`` is the model's, ``TURBO_FLOW`` the
            two-step flow of Turbo, anything else a directory with its file.
        hops, large_model_hops: tokens in the parts of a stream, of a model like pico and of one
            like Chatterbox (``T3Config.is_large``); the last size repeats.
        first_steps, large_model_first_steps: see ``HopSchedule``; None: as many as elsewhere.
    """

    name: str
    description: str = ""
    t3: str = "float32"
    flow: str = "float32"
    vocoder: str = "float32"
    compute: str = ""
    compile: str = "none"
    offload: str = "none"
    kv_cache: str = "auto"
    flow_model: str = OWN_FLOW
    hops: tuple[int, ...] = DEFAULT_SIZES
    large_model_hops: tuple[int, ...] = DEFAULT_SIZES
    first_steps: int | None = None
    large_model_first_steps: int | None = None

    def schedule(self, *, large: bool) -> HopSchedule:
        """Of streams with low latency, of a large model or one like pico."""
        if large:
            return HopSchedule(self.large_model_hops, first_steps=self.large_model_first_steps)
        return HopSchedule(self.hops, first_steps=self.first_steps)


def profiles_directory() -> Path:
    """Folder of the shipped profiles: in the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in profiles_directory().glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a shipped profile by name, or a file by path (``*.yaml``).

    Raises:
        ProfileError: not found, not YAML, or an unknown key or value (the known ones are listed).
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else profiles_directory() / f"{name}.yaml"
    if not is_file and name not in profile_names():
        raise ProfileError(
            f"unknown profile '{name}'; "
            f"known: {', '.join([AUTO, *profile_names()])}, or a .yaml file"
        )
    settings = read_yaml(f"profile '{name}'", path, MAX_BYTES, MAX_DEPTH, ProfileError)
    if not isinstance(settings, dict):
        raise ProfileError(f"profile '{name}' must be a mapping of keys to values")
    return _parse(name, settings)


def _parse(name: str, settings: Mapping[str, Any]) -> Profile:
    choices = {
        "description": None,
        "dtype": None,
        "compute": DTYPES,
        "compile": COMPILE,
        "offload": OFFLOAD,
        "kv_cache": KV_CACHE,
        "flow_model": None,
        **dict.fromkeys(STREAM),
    }
    check_keys(f"profile '{name}'", settings, choices)
    values = {k: v for k, v in settings.items() if k != "dtype" and k not in STREAM}
    stream = {k: _stream_value(name, k, settings[k]) for k in STREAM if k in settings}
    dtype = settings.get("dtype", "float32")
    if not isinstance(dtype, (str, dict)):
        raise ProfileError(
            f"profile '{name}': dtype is {shortened(dtype)}; give a name, or one per stage"
        )
    per_stage = stages_of(dtype) if isinstance(dtype, str) else dict(dtype)
    check_keys(f"profile '{name}', dtype", per_stage, STAGE_DTYPES)
    if not isinstance(values.get("description", ""), str):
        raise ProfileError(f"profile '{name}': description must be a text")
    if not is_flow_model(flow := values.get("flow_model", OWN_FLOW)):
        raise ProfileError(f"profile '{name}': flow_model is {shortened(flow)}; {FLOW_MODELS}")
    for key, value in (values | per_stage).items():
        allowed = STAGE_DTYPES.get(key) or choices[key]
        if allowed and value not in allowed:
            raise ProfileError(
                f"profile '{name}': {key} is {shortened(value)}; known: {', '.join(allowed)}"
            )
    integers = [dtype for dtype in per_stage.values() if dtype in QUANTIZED]
    if settings.get("compute") and integers:
        raise ProfileError(
            f"profile '{name}': compute is for float16 and bfloat16 weights; remove it, "
            f"{integers[0]} sets its own"
        )
    return Profile(name=name, **values, **per_stage, **stream)


def _stream_value(name: str, key: str, value: Any) -> Any:
    """Sizes of a stream's parts from a list in YAML, or a number of steps."""
    wanted = "numbers of tokens, such as [10, 40, 100]" if key in HOPS else "a whole number"
    try:
        if key not in HOPS:
            return HopSchedule(first_steps=int(value)).first_steps
        if not isinstance(value, list):
            raise ValueError
        return HopSchedule(tuple(int(size) for size in value)).sizes
    except InputError as error:
        raise ProfileError(f"profile '{name}': {key}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ProfileError(
            f"profile '{name}': {key} is {shortened(value)}; give {wanted}"
        ) from error


def is_flow_model(value: object) -> bool:
    """Whether a value can be a ``Profile.flow_model``; if it is a directory is not looked at."""
    return isinstance(value, str) and value.strip() != ""


def stages_of(dtype: str) -> dict[str, str]:
    """The dtypes of the stages for one dtype name.

    int4 applies to T3, whose decode step is memory-bound, and becomes int8 in the flow, which is
    compute-bound. The vocoder has float32 or bfloat16; GPUs make it float32 (downgrade.py).
    """
    if dtype in QUANTIZED:
        return {"t3": dtype, "flow": "int8", "vocoder": "bfloat16"}
    return {"t3": dtype, "flow": dtype, "vocoder": dtype if dtype == "bfloat16" else "float32"}


def check_keys(where: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ProfileError for a key that is not in ``known``; ``where`` names its origin."""
    if unknown := sorted(str(key) for key in set(settings) - set(known)):
        key = shortened(unknown[0])
        raise ProfileError(f"{where}: unknown key {key}; known: {', '.join(known)}")
