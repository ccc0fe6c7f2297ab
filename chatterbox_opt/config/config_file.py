"""The file ``config.json`` of a checkpoint: only the values that differ from its kind's.

Responsible for reading, checking and writing it. Not responsible for what the values mean
(model_config.py) or for the values that each may have (limits.py). It has one object for each part.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from chatterbox_opt.config import limits
from chatterbox_opt.config.model_config import GPT2, SPEECH_TOKENS, ModelConfig, T3Config
from chatterbox_opt.errors import WeightsError
from chatterbox_opt.utils.small_file import read_at_most

PARTS = ("t3", "flow", "vocoder", "voice")
CONFIG_FILE = "config.json"
MAX_BYTES = 1 << 20  # of it
_AGAIN = "make or copy it again"
# further keys of config.json -> fields that they set
FLAGS = {"made": "random_weights", "spelled": "needs_text_normalization"}


def read_config(directory: Path, base: ModelConfig | None = None) -> ModelConfig:
    """Read ``config.json`` of a checkpoint directory; without one ``base`` is returned.

    Args:
        base: of the directory's kind, which the file changes; None is Chatterbox's.

    Raises:
        WeightsError: cannot be read, not JSON, an unknown part or field, or an impossible value.
    """
    path, base = directory / CONFIG_FILE, base or ModelConfig()
    if not path.exists():
        return base
    config = _read_json(path)
    known = (*PARTS, *FLAGS)
    if not isinstance(config, dict) or not set(config) & set(known):
        return base  # not our format: hub repositories and fine-tunes often have one
    values: dict[str, Any] = {}
    for name, value in config.items():
        if name not in known:
            raise WeightsError(f"{path}: unknown part {name!r:.60}; known: {', '.join(known)}")
        if name not in FLAGS:
            values[name] = _read_part(path, name, value, getattr(base, name))
        elif isinstance(value, bool):
            values[FLAGS[name]] = value
        else:
            raise WeightsError(f"{path}: {name} must be true or false; {_AGAIN}")
    result = dataclasses.replace(base, **values)
    if reason := _contradiction(result):
        raise WeightsError(f"{path}: {reason}; {_AGAIN}")
    return result


def is_random(directory: Path) -> bool:
    """Whether ``config.json`` says that the values are random, whatever model it describes.

    Raises:
        WeightsError: cannot be read, or not JSON.
    """
    path = directory / CONFIG_FILE
    config = _read_json(path) if path.exists() else None
    return isinstance(config, dict) and config.get("made") is True


def _contradiction(config: ModelConfig) -> str:
    """Two values that do not go together, in words, or ""."""
    voice = config.voice
    divided = {
        "t3.width": (config.t3.width, config.t3.heads),
        "t3.width (resampler)": (config.t3.width, config.t3.resampler_heads),
        "flow.encoder_width": (config.flow.encoder_width, config.flow.encoder_heads),
        "voice.tokenizer_width": (voice.tokenizer_width, voice.tokenizer_heads),
    }
    for name, (width, heads) in divided.items():
        if width % heads:
            return f"{name} is {width}, which {heads} heads do not divide"
    return _contradiction_in_t3(config.t3)


def _contradiction_in_t3(t3: T3Config) -> str:
    if t3.head_dim % 2:
        return f"t3.width / t3.heads is {t3.head_dim}, which is odd"
    if (t3.backbone == GPT2) != (t3.positions > 0):
        return f"t3.positions is {t3.positions} and t3.backbone is {t3.backbone}"
    if t3.rope_low == t3.rope_high:
        return "t3.rope_low and t3.rope_high are equal"
    if t3.speech_vocab <= SPEECH_TOKENS:
        return f"t3.speech_vocab is {t3.speech_vocab}, at most {SPEECH_TOKENS}"
    for name, vocabulary in (("text", t3.text_vocab), ("speech", t3.speech_vocab)):
        for token in (f"start_{name}", f"stop_{name}"):
            if (id := getattr(t3, token)) >= vocabulary:
                return f"t3.{token} is {id}, beyond t3.{name}_vocab {vocabulary}"
    return ""


def _read_json(path: Path) -> Any:
    try:
        content = read_at_most(path, MAX_BYTES)
        if content is None:
            raise WeightsError(f"{path} has more than {MAX_BYTES >> 20} MiB; {_AGAIN}")
        return json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}): check the permissions, or {_AGAIN}"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is not valid JSON ({reason}); {_AGAIN}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in result if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r:.60} is there more than once")
    return result


def _read_part(path: Path, name: str, values: object, part: Any) -> Any:
    known = [f.name for f in dataclasses.fields(part)]
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: {name} must map names to numbers; {_AGAIN}")
    if unknown := sorted(set(values) - set(known)):
        raise WeightsError(f"{path}: {name} has no {unknown[0]!r:.60}; known: {', '.join(known)}")
    for key, value in values.items():
        if reason := limits.problem(key, value, getattr(part, key)):
            shown = f"{json.dumps(value):.60}"
            raise WeightsError(f"{path}: {name}.{key} is {shown}; {reason}; {_AGAIN}")
    return dataclasses.replace(part, **values)


def write_config(directory: Path, config: ModelConfig, base: ModelConfig | None = None) -> None:
    """Write the fields of ``config`` that differ from those of ``base`` to ``config.json``.

    Args:
        base: as ``read_config`` will get it.
    """
    base = base or ModelConfig()
    written: dict[str, Any] = {key: True for key, name in FLAGS.items() if getattr(config, name)}
    for part in PARTS:
        values, default = (dataclasses.asdict(getattr(c, part)) for c in (config, base))
        if differing := {k: v for k, v in values.items() if v != default[k]}:
            written[part] = differing
    if written:
        (directory / CONFIG_FILE).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
