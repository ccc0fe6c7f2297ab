"""What an engine is loaded from: a picklable value that commands and worker processes share.

Responsible for the settings of one engine: checking them before torch is imported, and loading an
engine with them. Not responsible for command lines; imports no typer and no rich.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.checkpoints import flows, registry, weight_cache
from chatterbox_opt.checkpoints.registry import Checkpoint
from chatterbox_opt.config import hardware, plan, settings
from chatterbox_opt.config.plan import Plan
from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import Sampling, for_model
from chatterbox_opt.text import languages
from chatterbox_opt.utils.steps import announce
from chatterbox_opt.voices.store import VoiceStore, default_store
from chatterbox_opt.words.support import check_timestamps

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The model, device and settings of an engine.

    Attributes:
        model: a name, or a directory with a checkpoint's files.
        profile: a name, a YAML path, or "auto".
        device: one of ``hardware.DEVICES``.
        overrides: ``dtype``, ``compile``, ``offload``, ``kv_cache``, ``flow_model``; they
            override environment and profile.
        store: where voices are stored; its ``keep_computed`` applies to converted weights too.
        watermark: mark all audio with PerTh.
        speaks: it has a T3; otherwise it converts recordings only.
    """

    model: str = registry.DEFAULT
    profile: str = hardware.AUTO
    device: str = hardware.AUTO
    overrides: Mapping[str, str] = field(default_factory=dict)
    store: VoiceStore = field(default_factory=default_store)
    watermark: bool = True
    speaks: bool = True

    def check(
        self,
        voice: str | None,
        language: str | None = None,
        sampling: Sampling | None = None,
        *,
        timestamps: bool = False,
    ) -> None:
        """Check the settings before torch is imported.

        Args:
            voice, language, sampling, timestamps: as of a ``Request``.

        Raises:
            InputError: unknown model, voice, device, profile, key or value; a voice, language or
                sampling parameter that is not for this model; no word times.
            WeightsError: the model's directory lacks a file.
        """
        config = registry.known_config(self.model, speaks=self.speaks)
        languages.check_model(language, config)
        if timestamps:
            check_timestamps(config, languages.chosen(language, config))
        for_model(sampling or Sampling(), config.sampling_defaults, config.missing_knobs)
        if voice is not None:
            self.check_voice(voice)
        if self.device not in hardware.DEVICES:
            raise InputError(f"device is '{self.device}'; known: {', '.join(hardware.DEVICES)}")
        settings.check_settings(self.profile, self.overrides, os.environ)
        flows.check(self.model, self.flow_model)

    def check_voice(self, voice: str) -> None:
        """Check that there is a voice, and that a recording fits the model.

        Raises:
            InputError: it does not.
        """
        shipped = registry.shipped_voices(self.model)
        config = registry.known_config(self.model, speaks=self.speaks)
        if (path := self.store.find(voice, shipped)) not in shipped.values():
            audio_files.check_reference(path, config=config.reference)

    @property
    def flow_model(self) -> str:
        """Whose flow is requested, see ``Profile``."""
        return settings.flow_model(self.profile, self.overrides)

    def locate(self) -> Checkpoint:
        """Find the model's files. Raises as ``flows.locate``."""
        return flows.locate(self.model, self.flow_model)

    def resolve(self, detected: hardware.Hardware) -> Plan:
        """The plan of this engine on the detected hardware."""
        return plan.resolve(self.profile, detected, self.overrides)

    def load_converter(self) -> Engine:
        """Load an engine without T3 (imports torch)."""
        return _engine().load_converter(self.model, self.profile, **self._arguments())

    def load(self, resolved: Plan | None = None) -> Engine:
        """Load the engine (imports torch).

        Args:
            resolved: a plan that is already resolved; None detects the hardware and resolves one.
        """
        return _engine().load(self.model, self.profile, plan=resolved, **self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """What both ways of loading take."""
        return {
            "device": self.device,
            "overrides": self.overrides,
            "store": self.store,
            "watermark": self.watermark,
            "weights": weight_cache.default(keep=self.store.keep_computed),
        }


def _engine() -> type[Engine]:
    announce("importing PyTorch")
    from chatterbox_opt.engine.engine import Engine

    return Engine
