"""Profiles: requested settings from a YAML file, validated.

Responsible for keys, values and the folder of shipped profiles. Not responsible for what the
hardware supports (plan.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatterbox_opt.config.hardware import AUTO
from chatterbox_opt.config.hop_schedule import DEFAULT_SIZES, HopSchedule
from chatterbox_opt.errors import InputError, ProfileError
from chatterbox_opt.utils.small_file import read_at_most

STAGES = ("t3", "flow", "vocoder")
DTYPES = ("float32", "float16", "bfloat16")
QUANTIZED = {  # accuracy of each on CPU (docs/performance-log.md)
    "int8": "99.6 % of T3's tokens equal float32's, KL divergence 5.7e-4, on the built-in model",
    "int4": "98.3 % of T3's tokens equal float32's, KL divergence 7.4e-3, on the built-in model",
}
T3_DTYPES, FLOW_DTYPES = (*DTYPES, *QUANTIZED), (*DTYPES, "int8")
INT8_FLOW_COSTS = "log-mel cosine to float32 is 0.99997 on the built-in model; bfloat16 has 0.99998"
COMPILE = ("none", "cudagraphs", "inductor")
OFFLOAD = ("none", "stages", "all-but-active")  # from most GPU memory to least
KV_CACHE = ("auto", "int8")  # of T3; auto is T3's compute dtype
OWN_FLOW, TURBO_FLOW = "own", "turbo"  # whose flow; anything else is a directory
HOPS = ("hops", "large_model_hops")
STREAM = (*HOPS, "first_steps", "large_model_first_steps")
FLOW_MODELS = f"known: {OWN_FLOW}, {TURBO_FLOW}, or a directory with Turbo's flow"
MAX_BYTES = 64 << 10  # of a file; the shipped ones have less than 1 KiB
MAX_DEPTH = 2  # of mappings: the profile, and dtypes by stage
SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True, slots=True)
class Profile:
    """Requested settings of one profile.

    Attributes:
        name: of the shipped profile, or the path of a file.
        description: the hardware that it is for.
        t3: dtype of T3's weights, one of ``T3_DTYPES``.
        flow: dtype of the flow's weights, one of ``FLOW_DTYPES``; int8 applies to its transformer
            layers, the others are bfloat16. The vocoder is float32.
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
    settings = _read(name, path)
    if not isinstance(settings, dict):
        raise ProfileError(f"profile '{name}' must be a mapping of keys to values")
    return _parse(name, settings)


def _read(name: str, path: Path) -> Any:
    """The content of a file as strings, lists and mappings."""
    try:
        content = read_at_most(path, MAX_BYTES)
        if content is None:
            raise ProfileError(
                f"profile '{name}' has more than {MAX_BYTES >> 10} KiB: it is not a profile; "
                "give the path of one"
            )
        text = content.decode("utf-8")
        _check_events(text)
        # every scalar is a string: dates, numbers and tags cannot fail or become objects
        _check_keys_differ(node := yaml.compose(text, Loader=yaml.BaseLoader))
        return yaml.BaseLoader("").construct_document(node) if node else None
    except OSError as error:
        raise ProfileError(
            f"profile '{name}' cannot be read ({error.strerror}): check the path"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise ProfileError(
            f"profile '{name}' is not valid YAML ({_one_line(error)}): "
            "write one key: value per line"
        ) from error


def _check_events(text: str) -> None:
    """Raise ValueError for what no profile needs, before nodes exist that grow without bound."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"values are nested more than {MAX_DEPTH} deep")
        if getattr(event, "anchor", None):  # of an alias too
            raise ValueError("anchors and aliases (& and *) have no meaning in a profile")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"the tag {_shortened(tag)} has no meaning in a profile")


def _check_keys_differ(node: yaml.Node | None) -> None:
    """Raise ValueError for a key that is there twice, of which YAML's loaders take the last."""
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"the key {_shortened(repeated[0])} is there more than once")
        for _, value in node.value:
            _check_keys_differ(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


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
            f"profile '{name}': dtype is {_shortened(dtype)}; give a name, or one per stage"
        )
    per_stage = stages_of(dtype) if isinstance(dtype, str) else dict(dtype)
    check_keys(f"profile '{name}', dtype", per_stage, dict.fromkeys(STAGES))
    if per_stage.pop("vocoder", "float32") != "float32":
        raise ProfileError(
            f"profile '{name}': the vocoder is float32 only; half precision is audible"
        )
    if not isinstance(values.get("description", ""), str):
        raise ProfileError(f"profile '{name}': description must be a text")
    if not is_flow_model(flow := values.get("flow_model", OWN_FLOW)):
        raise ProfileError(f"profile '{name}': flow_model is {_shortened(flow)}; {FLOW_MODELS}")
    for key, value in (values | per_stage).items():
        allowed = {"t3": T3_DTYPES, "flow": FLOW_DTYPES}.get(key) or choices[key]
        if allowed and value not in allowed:
            raise ProfileError(
                f"profile '{name}': {key} is {_shortened(value)}; known: {', '.join(allowed)}"
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
            f"profile '{name}': {key} is {_shortened(value)}; give {wanted}"
        ) from error


def is_flow_model(value: object) -> bool:
    """Whether a value can be a ``Profile.flow_model``; if it is a directory is not looked at."""
    return isinstance(value, str) and value.strip() != ""


def stages_of(dtype: str) -> dict[str, str]:
    """The dtypes of the stages for one dtype name.

    int4 applies to T3, whose decode step is memory-bound, and becomes int8 in the flow, which is
    compute-bound.
    """
    return {"t3": dtype, "flow": "int8" if dtype in QUANTIZED else dtype}


def check_keys(where: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ProfileError for a key that is not in ``known``; ``where`` names its origin."""
    if unknown := sorted(str(key) for key in set(settings) - set(known)):
        key = _shortened(unknown[0])
        raise ProfileError(f"{where}: unknown key {key}; known: {', '.join(known)}")
