"""The order of the stages, with the expected time and the time limit of each.

Responsible for names and seconds. Not responsible for stages (stages/) or processes (processes.py).
The most valuable stage comes first: GPU time may be limited to minutes, so the last may be skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 535.0  # default seconds of a whole run
SETUP = 10.0  # expected seconds before the first stage
MIN_SECONDS = 15.0  # a stage is not started with less time left
WEIGHTS_LIMIT = 120.0  # seconds to write random weights


@dataclass(frozen=True, slots=True)
class Stage:
    """One process of a run.

    Attributes:
        name: of its module in stages/.
        expected: seconds on an H100; an estimate, until measured.
        limit: seconds after which it is terminated.
        weights: it needs full-size weights.
    """

    name: str
    expected: float
    limit: float
    weights: bool = True


CEILINGS = Stage("ceilings", 30, 60, weights=False)  # weights are written meanwhile
STAGES = (
    CEILINGS,
    Stage("core", 80, 130),
    Stage("upstream", 50, 80),
    Stage("profile", 35, 60),
    Stage("dtypes", 70, 110),
    Stage("lab", 60, 90, weights=False),
    Stage("batches", 55, 80),
    Stage("checks", 85, 130),
    Stage("samples", 25, 50, weights=False),
    Stage("profiles", 35, 60),
)


def choose(names: list[str]) -> tuple[Stage, ...]:
    """The stages with these names, in the order of the names; no name means all.

    Raises:
        ValueError: an unknown name.
    """
    known = {stage.name: stage for stage in STAGES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown stage '{unknown[0]}'; known: {', '.join(known)}")
    return tuple(known[name] for name in names) or STAGES
