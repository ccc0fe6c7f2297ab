"""The GPU kit's setting (benchmarks/gpu) on a machine without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu import setting


@dataclass(frozen=True, slots=True)
class FakeSetting(setting.Setting):
    """Stages that need no torch."""

    def facts_command(self):
        return ["true"]

    def gpu_command(self):
        return ["true"]
