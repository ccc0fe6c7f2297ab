"""Faults injected into an engine's stages, and the results of a batch with them."""

from __future__ import annotations

from chatterbox_opt import Request, Sampling

SAMPLING = Sampling(seed=3, max_tokens=20, cfm_steps=2)


class FaultInjector:
    """Wraps a stage's method: fails ``times`` times, then works."""

    def __init__(self, method, error, times, after=0):
        self.method, self.error, self.left, self.after = method, error, times, after

    def __call__(self, *args, **kwargs):
        if self.left > 0:
            self.left -= 1
            raise self.error
        return self.method(*args, **kwargs)


def stage(engine, name):
    return engine.pipeline.placement._stages[name]


def batch_waves(engine, texts):
    """Waves by text, or the error."""
    requests = (Request(t, t, None, SAMPLING) for t in texts)
    results = {r.id: r for r in engine.batch(requests)}
    assert set(results) == set(texts)
    return {t: r.error or r.audio().samples for t, r in results.items()}
