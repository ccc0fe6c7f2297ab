"""What an engine can do with recordings: convert them to another voice.

Responsible for these calls, and for an engine without T3, which they do not need. Not responsible
for texts (engine/engine.py) or for the work.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.config import hardware
from chatterbox_opt.engine import build
from chatterbox_opt.engine.conversion.request import Conversion
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.engine.upstream_backend import NO_CONVERSION
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Audio, Piece, Result, VoiceSource, join
from chatterbox_opt.runtime.own_thread import in_own_thread
from chatterbox_opt.utils.arguments import instance, instances, name_or_path
from chatterbox_opt.utils.closing import Closing
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import VoiceStore, default_store

if TYPE_CHECKING:
    from typing_extensions import Self

    from chatterbox_opt.audio.watermark import Watermark
    from chatterbox_opt.checkpoints.registry import Checkpoint
    from chatterbox_opt.checkpoints.weight_cache import WeightCache
    from chatterbox_opt.config.plan import Plan
    from chatterbox_opt.engine.conversion.states import ConversionStates
    from chatterbox_opt.engine.scheduler import SpeechBackend
    from chatterbox_opt.engine.serving.loop import EngineLoop


class ConvertingEngine(Closing):
    """The part of an engine that needs no text. Attributes are ``Engine``'s."""

    plan: Plan
    pipeline: SpeechBackend
    _loop: EngineLoop
    _conversions: ConversionStates

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        pipeline: SpeechBackend,
        voices: VoiceLibrary,
        watermark: Watermark | None,
    ) -> None:
        """Take over loaded parts."""
        raise NotImplementedError

    @classmethod
    def load_converter(
        cls,
        model: str | os.PathLike[str] = registry.DEFAULT,
        profile: str | os.PathLike[str] = hardware.AUTO,
        *,
        device: str = hardware.AUTO,
        overrides: Mapping[str, str] | None = None,
        store: VoiceStore | None = None,
        watermark: bool = True,
        weights: WeightCache | None = None,
    ) -> Self:
        """Load an engine without T3, which only converts recordings: less memory, sooner ready.

        Args:
            model: as of ``load``; a directory needs only upstream's s3gen file, and a conds.pt if
                it is to have a voice of its own.
            profile, device, overrides, store, watermark, weights: as of ``load``.

        Raises:
            InputError, WeightsError, DeviceError: as ``load``.
        """
        name, profile = name_or_path("model", model), name_or_path("profile", profile)
        instance("overrides", overrides, Mapping, optional=True)
        instance("store", store, VoiceStore, optional=True)
        arguments = (name, profile, device, overrides, None, weights)
        load = functools.partial(build.load, *arguments, watermark=watermark, speaks=False)
        return cls._of(load, store)

    @classmethod
    def _of(cls, load: Callable[[], build.Parts], store: VoiceStore | None) -> Self:
        """The engine of loaded parts, with the voices of their checkpoint."""
        parts = in_own_thread(load)
        voices = VoiceLibrary(parts.checkpoint, store or default_store())
        return cls(parts.plan, parts.checkpoint, parts.pipeline, voices, parts.watermark)

    def convert(
        self,
        source: Audio | str | os.PathLike[str],
        voice: VoiceSource = None,
        *,
        seed: int | None = None,
        cfm_steps: int | None = None,
    ) -> Audio:
        """Say what a recording says with another voice (upstream's ``ChatterboxVC``).

        Args:
            source: a path of an audio file or a pipe, or ``Audio``; of any length.
            voice: that the result has; as for ``voice``.
            seed: reproduces the samples; None draws one.
            cfm_steps: Euler steps of the flow; None is the model's own number.

        Returns:
            audio as long as the recording, to the sample.

        Raises:
            VoiceError: no such voice; the recording is not audio, shorter than 0.1 s, silent.
            InputError: a value of another type or out of range; the backend is plain upstream.
            DeviceError, NumericsError: after all fallbacks.
        """
        conversion = Conversion("", source, voice, seed, cfm_steps).with_seed()
        return join(list(self.converted_pieces(conversion)), conversion.seed or 0)

    def converted_pieces(self, conversion: Conversion) -> Iterator[Piece]:
        """Yield a conversion in parts of up to half a minute, each as soon as it is ready.

        Joined they are what ``convert`` returns. Raises as ``convert``, by the call itself.
        """
        self._check_backend()
        capacity = Capacity(self.plan.slots, use_cfg=False)
        return self._loop.pieces(self._conversions.of(conversion.with_seed(), capacity))

    def convert_many(self, conversions: Iterable[Conversion]) -> Iterator[Result]:
        """Convert many recordings; yield results as they finish, each with its conversion's id.

        The error of a conversion is a value in its result and does not affect the others. A
        conversion is taken from the iterable when flow and vocoder have room for another one; what
        is there is rendered together.

        Raises:
            InputError: something other than a Conversion, when it is taken from the iterable; the
                backend is plain upstream.
        """
        instance("conversions", conversions, Iterable)
        self._check_backend()
        capacity = Capacity(self.plan.slots, use_cfg=False)
        return self._loop.results(
            instances("conversion", conversions, Conversion),
            lambda conversion: self._conversions.of(conversion, capacity),
            capacity,
        )

    def _check_backend(self) -> None:
        if not isinstance(self.pipeline, Pipeline):
            raise InputError(NO_CONVERSION)
