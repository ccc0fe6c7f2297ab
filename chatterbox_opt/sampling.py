"""Sampling parameters of one request, and the seeds derived from them.

Responsible for ranges and defaults. Not responsible for sampling itself (models/t3/sampler.py).
Defaults and meaning are upstream's (``ChatterboxTTS.generate``, tts.py 0.1.7).

Some defaults are other ones with some models, and some models do not have some parameters. So the
type of a default says that it was not set: the engine, which knows the model, takes the model's own
instead, and refuses a parameter that was set and that the model does not have.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.arguments import number, shown, whole_number

MAX_TOKENS = 4096  # size of T3's table of speech positions (upstream t3_config.py)
SEED_LIMIT = 2**63
TOP_K_LIMIT = 2**31
CFM_STEPS = 10  # upstream's number of Euler steps (flow_matching.py)
WHOLE_NUMBERS = ("seed", "max_tokens", "cfm_steps", "top_k")


class DefaultFloat(float):
    """A default that depends on the model; otherwise the number that it is."""


class DefaultInt(int):
    """A default that depends on the model; otherwise the number that it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of one request; keyword arguments, validated on construction.

    Numbers of any library are accepted, such as ``np.int64`` and ``np.float32``.

    Attributes:
        seed: makes the result bit-reproducible on one machine and plan; None draws a new seed.
        temperature: of T3's distribution; 0 is greedy decoding.
        cfg_weight: classifier-free guidance weight; 0 disables guidance.
        exaggeration: emotion; 0.5 is neutral, above 1 becomes unstable.
        min_p: drops tokens less likely than ``min_p`` times the most likely one.
        top_p: nucleus sampling; 1 keeps all tokens.
        repetition_penalty: above 1 discourages tokens that were already generated.
        max_tokens: limit of one chunk; 25 tokens are one second of audio.
        cfm_steps: Euler steps of the flow; fewer are faster and less accurate.
        top_k: keeps only the ``top_k`` most likely tokens; 0 keeps all. Not in upstream.

    Raises:
        InputError: not a number, or out of range.
    """

    seed: int | None = None
    temperature: float = 0.8
    cfg_weight: float = DefaultFloat(0.5)
    exaggeration: float = DefaultFloat(0.5)
    min_p: float = DefaultFloat(0.05)
    top_p: float = DefaultFloat(1.0)
    repetition_penalty: float = DefaultFloat(1.2)
    max_tokens: int = DefaultInt(1000)
    cfm_steps: int = DefaultInt(CFM_STEPS)
    top_k: int = DefaultInt(0)

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if (name == "seed" and value is None) or not self.is_chosen(name):
                continue
            check = whole_number if name in WHOLE_NUMBERS else number
            object.__setattr__(self, name, check(name, value))
        in_range = {
            "seed": (self.seed is None or 0 <= self.seed < SEED_LIMIT, "0 to 2^63 - 1"),
            "temperature": (
                self.temperature == 0 or 0.01 <= self.temperature <= 5,
                "0 (greedy), or 0.01 to 5",
            ),
            "cfg_weight": (0 <= self.cfg_weight <= 10, "0 (off) to 10"),
            "exaggeration": (0 <= self.exaggeration <= 5, "0 to 5"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1"),
            "top_k": (0 <= self.top_k < TOP_K_LIMIT, "0 (off) to 2^31 - 1"),
            "repetition_penalty": (0.1 <= self.repetition_penalty <= 10, "0.1 to 10"),
            "cfm_steps": (1 <= self.cfm_steps <= 100, "1 to 100"),
            "max_tokens": (1 <= self.max_tokens <= MAX_TOKENS, f"1 to {MAX_TOKENS}"),
        }
        for name, (valid, bounds) in in_range.items():
            if not valid:
                raise InputError(
                    f"{name} is {shown(getattr(self, name))}; give a value from {bounds}"
                )

    def is_chosen(self, name: str) -> bool:
        """Whether a parameter was set, and is not only the default of most models."""
        return not isinstance(getattr(self, name), (DefaultFloat, DefaultInt))

    @property
    def truncates(self) -> bool:
        """Whether tokens are filtered by rank (top_p or top_k), which needs sorted logits."""
        return self.top_p < 1 or self.top_k > 0


def chosen(values: Mapping[str, Any]) -> Sampling:
    """The sampling parameters of those values that are not None.

    Raises:
        InputError: not a number, or out of range.
    """
    return Sampling(**{name: value for name, value in values.items() if value is not None})


def for_model(
    sampling: Sampling, defaults: Mapping[str, float], missing: Collection[str]
) -> Sampling:
    """The sampling parameters with a model's own values in place of those that were not set.

    Args:
        defaults: of the model, where they differ; of what it does not have, the value that is off.
        missing: parameters that the model does not have.

    Raises:
        InputError: one of those was chosen.
    """
    for name in missing:
        value = getattr(sampling, name)
        if sampling.is_chosen(name) and value != defaults[name]:
            raise InputError(f"{name} is {value}, and this model has no {name}; leave it out")
    own: dict[str, Any] = {
        name: value for name, value in defaults.items() if not sampling.is_chosen(name)
    }
    return replace(sampling, **own) if own else sampling


def seeded(sampling: Sampling) -> Sampling:
    """The same sampling parameters with a seed, drawn if there was none."""
    if sampling.seed is not None:
        return sampling
    return replace(sampling, seed=secrets.randbits(32))


def chunk_seed(seed: int, index: int, attempt: int = 0) -> int:
    """Return the seed of chunk ``index``.

    The first chunk uses the request's own seed, so that a text of one chunk draws the same random
    numbers as upstream after ``torch.manual_seed(seed)``. Seeds of other chunks and attempts are
    hashed, so that adjacent request seeds have no chunk seed in common.
    """
    if (index, attempt) == (0, 0):
        return seed
    digest = hashlib.blake2b(f"{seed}/{index}/{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % SEED_LIMIT
