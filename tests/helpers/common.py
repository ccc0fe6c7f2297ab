"""Where things are, and how tensors are compared."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "speaker.flac"


def assert_close(actual, expected, *, atol: float) -> None:
    """Compare, and on failure say how far apart, and where that is much."""
    assert actual.shape == expected.shape, f"shapes {actual.shape} and {expected.shape}"
    difference = (actual.double() - expected.double()).abs()
    worst, mean = difference.max().item(), difference.mean().item()
    assert worst <= atol, f"max difference {worst:.3g}, mean {mean:.3g}, allowed {atol:.3g}"
