"""Environment variables and command-line options that override a profile.

Responsible for their names, values and precedence. Not responsible for what the hardware supports
(downgrade.py). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from chatterbox_opt.config.hardware import AUTO
from chatterbox_opt.config.profile import (
    COMPILE,
    FLOW_MODELS,
    KV_CACHE,
    OFFLOAD,
    OWN_FLOW,
    T3_DTYPES,
    check_keys,
    is_flow_model,
    load_profile,
)
from chatterbox_opt.errors import ProfileError

# environment variable -> profile key, and its accepted words -> values
ENVIRONMENT: dict[str, tuple[str, dict[str, str]]] = {
    "CHATTERBOX_DTYPE": ("dtype", {name: name for name in T3_DTYPES}),
    "CHATTERBOX_COMPILATION": ("compile", {"true": "cudagraphs", "false": "none"}),
    "CHATTERBOX_CPU_OFFLOAD": ("offload", {"true": "stages", "false": "none"}),
    "CHATTERBOX_KV_CACHE": ("kv_cache", {name: name for name in KV_CACHE}),
}
DISABLE_OPTIMIZATION = "DISABLE_OPTIMIZATION"
GPU_KERNELS = "CHATTERBOX_GPU_KERNELS"  # false: PyTorch's operations in place of our own kernels
COMMAND_LINE = "the command line"  # the source of a setting
FLOW_MODEL = "flow_model"  # a profile key; no variable has it: it is asked for in plain sight
BOOLEAN = {"true": "true", "false": "false"}


def optimization_disabled(environment: Mapping[str, str]) -> bool:
    """Whether DISABLE_OPTIMIZATION requests plain upstream.

    Raises:
        ProfileError: a value other than true or false.
    """
    return _setting(environment, DISABLE_OPTIMIZATION, BOOLEAN) == "true"


def gpu_kernels_disabled(environment: Mapping[str, str]) -> bool:
    """Whether CHATTERBOX_GPU_KERNELS=false requests PyTorch's operations only.

    Raises:
        ProfileError: a value other than true or false.
    """
    return _setting(environment, GPU_KERNELS, BOOLEAN) == "false"


def check_settings(
    profile: str, overrides: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Raise ProfileError for settings that are wrong on every machine; imports no torch."""
    if profile != AUTO:
        load_profile(profile)
    optimization_disabled(environment)
    gpu_kernels_disabled(environment)
    override_settings(environment, overrides)


def override_settings(
    environment: Mapping[str, str], overrides: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Key, value and source of every setting that overrides a profile, lowest precedence first.

    Args:
        overrides: ``dtype``, ``compile``, ``offload``, ``kv_cache``, ``flow_model``.

    Raises:
        ProfileError: an unknown key or value.
    """
    settings = []
    for variable, (key, values) in ENVIRONMENT.items():
        if value := _setting(environment, variable, values):
            settings.append((key, value, variable))
    allowed = {"dtype": T3_DTYPES, "compile": COMPILE, "offload": OFFLOAD, "kv_cache": KV_CACHE}
    check_keys("options", overrides, {**allowed, FLOW_MODEL: ()})
    for key, value in overrides.items():
        if key == FLOW_MODEL and not is_flow_model(value):
            raise ProfileError(f"{key} is {value!r}; {FLOW_MODELS}")
        if key != FLOW_MODEL and value not in allowed[key]:
            raise ProfileError(f"{key} is '{value}'; known: {', '.join(allowed[key])}")
        settings.append((key, value, COMMAND_LINE))
    return settings


def flow_model(profile: str, overrides: Mapping[str, str]) -> str:
    """The requested ``Profile.flow_model``; no profile that ``AUTO`` chooses has one.

    Raises:
        ProfileError: an unknown profile.
    """
    own = OWN_FLOW if profile == AUTO else load_profile(profile).flow_model
    return overrides.get(FLOW_MODEL, own)


def _setting(environment: Mapping[str, str], variable: str, values: Mapping[str, str]) -> str:
    value = environment.get(variable, "").strip().lower()
    value = {"1": "true", "0": "false"}.get(value, value)
    if value and value not in values:
        raise ProfileError(f"{variable} is '{value}'; known: {', '.join(values)}")
    return values.get(value, "")
