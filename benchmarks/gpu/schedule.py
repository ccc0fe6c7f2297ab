"""The stages in their order, what each is expected to take, and when each is ended.

Knows names and seconds. Knows nothing of what stages do (stages/) or of processes (local_workers.py).
The most valuable comes first: a GPU may be lent for minutes only, and what is last may be cut.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 535.0  # seconds of a whole run, unless told otherwise
SETUP = 10.0  # expected seconds of what comes before the first stage
LEAST = 15.0  # seconds below which a stage is not begun
WEIGHTS_LIMIT = 120.0  # seconds after which the making of weights is ended


@dataclass(frozen=True, slots=True)
class Stage:
    """One process of a run.

    Attributes:
        name: of its module in stages/.
        expected: seconds on an H100; an estimate until a run has told.
        limit: seconds after which it is ended.
        weights: it needs those of the true shapes.
    """

    name: str
    expected: float
    limit: float
    weights: bool = True


CEILINGS = Stage("ceilings", 30, 60, weights=False)  # needs no weights: those are made meanwhile
STAGES = (
    CEILINGS,
    Stage("core", 80, 130),
    Stage("upstream", 50, 80),
    Stage("profile", 35, 60),
    Stage("dtypes", 70, 110),
    Stage("lab", 60, 90, weights=False),
    Stage("batches", 55, 80),
    Stage("checks", 85, 130),
    Stage("speak", 25, 50, weights=False),
    Stage("profiles", 35, 60),
)


def choose(names: list[str]) -> tuple[Stage, ...]:
    """The stages of these names, in the order of the names; none means all.

    Raises:
        ValueError: an unknown name.
    """
    known = {stage.name: stage for stage in STAGES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown stage '{unknown[0]}'; known: {', '.join(known)}")
    return tuple(known[name] for name in names) or STAGES
