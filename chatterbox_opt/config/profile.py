"""Profiles: what a YAML file asks for, checked word by word.

Knows keys, values and where the shipped files are. Knows nothing of machines (plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatterbox_opt.config.hardware import AUTO
from chatterbox_opt.errors import ProfileError

STAGES = ("t3", "flow", "vocoder")
DTYPES = ("float32", "float16", "bfloat16")
QUANTIZED = {  # what each costs on a processor (docs/performance-log.md)
    "int8": "99.6 % of T3's choices as in float32, KL divergence 5.7e-4, on the built-in model",
    "int4": "98.3 % of T3's choices as in float32, KL divergence 7.4e-3, on the built-in model",
}
T3_DTYPES, FLOW_DTYPES = (*DTYPES, *QUANTIZED), (*DTYPES, "int8")
INT8_FLOW_COSTS = (
    "log-mel cosine to float32 0.99997 on the built-in model, where bfloat16 has 0.99998"
)
COMPILE = ("none", "cudagraphs", "inductor")
OFFLOAD = ("none", "stages", "all-but-active")  # from most memory on the card to least
KV_CACHE = ("auto", "int8")  # of T3; auto is the dtype of its arithmetic


@dataclass(frozen=True, slots=True)
class Profile:
    """What a YAML file asks for.

    Attributes:
        name: of the file, or its path.
        description: which hardware it is for.
        t3: dtype of its weights, one of ``T3_DTYPES``.
        flow: dtype of its weights, one of ``FLOW_DTYPES``; int8 is of its transformers, with
            bfloat16 between. The vocoder is float32.
        compute: dtype of arithmetic when it shall differ from the stored one, or "".
        compile: how the T3 step is compiled, one of ``COMPILE``.
        offload: one of ``OFFLOAD``: "stages" has them take turns on the card, the next one fetched
            while one works; "all-but-active" has only the working one there.
        kv_cache: dtype of T3's keys and values on a GPU, one of ``KV_CACHE``.
    """

    name: str
    description: str = ""
    t3: str = "float32"
    flow: str = "float32"
    compute: str = ""
    compile: str = "none"
    offload: str = "none"
    kv_cache: str = "auto"


def profiles_directory() -> Path:
    """Where the shipped profiles are: in the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"


def profile_names() -> list[str]:
    """Names of the shipped profiles."""
    return sorted(path.stem for path in profiles_directory().glob("*.yaml"))


def load_profile(name: str) -> Profile:
    """Read a shipped profile by name, or one of your own by path (``*.yaml``).

    Raises:
        ProfileError: not found, not YAML, or an unknown key or value (the known ones are named).
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else profiles_directory() / f"{name}.yaml"
    if not own and name not in profile_names():
        raise ProfileError(
            f"unknown profile '{name}'; "
            f"known: {', '.join([AUTO, *profile_names()])}, or a .yaml file"
        )
    try:
        wishes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"profile '{name}' cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile '{name}' is not valid YAML ({_first_line(error)})") from error
    if not isinstance(wishes, dict):
        raise ProfileError(f"profile '{name}' must be a mapping of keys to values")
    return _parse(name, wishes)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parse(name: str, wishes: Mapping[str, Any]) -> Profile:
    choices = {
        "description": None,
        "dtype": None,
        "compute": DTYPES,
        "compile": COMPILE,
        "offload": OFFLOAD,
        "kv_cache": KV_CACHE,
    }
    check_keys(f"profile '{name}'", wishes, choices)
    values = {k: v for k, v in wishes.items() if k != "dtype"}
    dtype = wishes.get("dtype", "float32")
    if not isinstance(dtype, (str, dict)):
        raise ProfileError(f"profile '{name}': dtype is {dtype!r}; give a name, or one per stage")
    per_stage = stages_of(dtype) if isinstance(dtype, str) else dict(dtype)
    check_keys(f"profile '{name}', dtype", per_stage, dict.fromkeys(STAGES))
    if per_stage.pop("vocoder", "float32") != "float32":
        raise ProfileError(
            f"profile '{name}': the vocoder is float32 only; half precision is audible"
        )
    for key, value in (values | per_stage).items():
        allowed = {"t3": T3_DTYPES, "flow": FLOW_DTYPES}.get(key) or choices[key]
        # YAML reads a bare `none` as text but `no`, `off` and `~` as other things
        if allowed and value not in allowed:
            raise ProfileError(f"profile '{name}': {key} is {value!r}; known: {', '.join(allowed)}")
    integers = [dtype for dtype in per_stage.values() if dtype in QUANTIZED]
    if wishes.get("compute") and integers:
        raise ProfileError(f"profile '{name}': compute is for halves; {integers[0]} has its own")
    return Profile(name=name, **values, **per_stage)


def stages_of(dtype: str) -> dict[str, str]:
    """What one word for all stages means for each: 4 bits are for T3, whose step waits for its
    matrices, and not for the flow, which computes."""
    return {"t3": dtype, "flow": "int8" if dtype in QUANTIZED else dtype}


def check_keys(where: str, given: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Raise ProfileError for a key that is not among ``keys``; ``where`` says whose it is."""
    if unknown := sorted(str(key) for key in set(given) - set(keys)):
        raise ProfileError(f"{where}: unknown key '{unknown[0]}'; known: {', '.join(keys)}")
