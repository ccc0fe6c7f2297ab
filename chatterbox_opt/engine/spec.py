"""What an engine is loaded from: a picklable value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.checkpoints import registry, weight_cache
from chatterbox_opt.cli import console
from chatterbox_opt.config import hardware, plan
from chatterbox_opt.errors import InputError
from chatterbox_opt.voices import store as voice_store
from chatterbox_opt.voices.store import VoiceStore

if TYPE_CHECKING:
    from chatterbox_opt.engine.engine import Engine


def store_at(directory: Path | None, *, keep: bool = True) -> VoiceStore:
    """The store in a directory, or in the default one."""
    return VoiceStore(directory or voice_store.default_directory(), keep)


def given(**options: str | None) -> dict[str, str]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Machine:
    """Which model, on what, and how."""

    model: str
    profile: str
    device: str
    overrides: Mapping[str, str]
    store: VoiceStore
    watermark: bool

    def check(self, voice: str | None) -> None:
        """Say what is wrong before torch is imported.

        Raises:
            InputError: unknown model, voice, device, profile, key or value.
        """
        registry.check_name(self.model)
        if voice is not None:
            shipped = registry.shipped_voices(self.model)
            if (path := self.store.find(voice, shipped)) not in shipped.values():
                audio_files.check_reference(path)
        if self.device not in hardware.DEVICES:
            raise InputError(f"device is '{self.device}'; known: {', '.join(hardware.DEVICES)}")
        plan.check_settings(self.profile, self.overrides, os.environ)

    def announce(self, talk: console.Reporter) -> None:
        """Say so if the model's files have to be fetched first."""
        if registry.must_download(self.model):
            talk.say(f"fetching {registry.HUB[self.model]} from the hub: 3 GB, once")

    def load(self, talk: console.Reporter) -> Engine:
        """Load the engine and say what it is."""
        from chatterbox_opt.engine.engine import Engine

        self.announce(talk)
        engine = Engine.load(
            self.model,
            self.profile,
            device=self.device,
            overrides=self.overrides,
            store=self.store,
            watermark=self.watermark,
            weights=weight_cache.default(keep=self.store.keep_computed),
        )
        talk.say(engine.plan.summary())
        for reason in engine.plan.reasons:
            talk.detail(f"  {reason}")
        return engine
