"""How many inputs a fuzz test tries: a few in the suite, FUZZ_EXAMPLES of them in ``make fuzz``;
and a limit on the time of any test.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SECONDS, BYTES = 2.0, 500 << 20  # that one input may take


def examples(few: int) -> Callable[[Any], Any]:
    """Decorate a fuzz test: settings, and in ``make fuzz`` limits on time and memory.

    Args:
        few: inputs in the normal suite, where the same are tried every time.
    """
    chosen = settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )

    def decorate(test: Any) -> Any:
        if EXAMPLES:
            test.hypothesis.inner_test = _limited(test.hypothesis.inner_test)
        return chosen(test)

    return decorate


@contextmanager
def soon(seconds: float = 5.0) -> Iterator[None]:
    """Fails if what is done inside takes as much time of the processor."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < seconds, f"{taken:.1f} s"


def _limited(test: Callable[..., None]) -> Callable[..., None]:
    """The test, which fails if one input takes too much time of the processor, or memory."""
    first = True

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        nonlocal first
        before, start = _peak_bytes(), time.process_time()
        gc.disable()  # a collection goes through all that ten thousand inputs have left
        try:
            test(*args, **kwargs)
            seconds = time.process_time() - start
        finally:
            gc.enable()
        assert first or seconds < SECONDS, f"{seconds:.1f} s"  # the first imports
        first = False
        assert _peak_bytes() - before < BYTES

    return run


def _peak_bytes() -> int:
    """The most memory that this process ever had."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def damage(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """``content`` with a few bytes replaced, inserted, removed, or cut off."""
    from hypothesis import strategies as st

    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # the beginning has the structure, the rest is numbers
        at = draw(st.integers(0, min(len(data), 600)) | st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])
