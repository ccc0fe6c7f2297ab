"""``synth --stream`` and ``--play``: sound while it is still being made.

Responsible for their options, for where the sound goes, and for text that arrives at standard
input. Not responsible for the other options or for the result that is printed (command.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio import streaming
from chatterbox_opt.audio.player import REMEDY, Player
from chatterbox_opt.audio.prebuffer import Playback, Prebuffer
from chatterbox_opt.cli.synth import hops as hops_options
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import CHUNK, LATENCIES, LOW
from chatterbox_opt.text.arriving import FLUSH_AFTER

if TYPE_CHECKING:
    from io import RawIOBase

    from chatterbox_opt.utils.wave import Wave, WaveSink

DEFAULT_OUTPUT = "out.wav"
STDIN_REMEDY = "pass the text as an argument or --file FILE"
SECONDS_PER_LETTER = 0.075  # of speech that is not fast


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """When sound is given out, and whether it is played."""

    stream: Annotated[
        bool,
        typer.Option("--stream", help="Give out sound as it is made; read TEXT - as it arrives."),
    ] = False
    play: Annotated[
        bool, typer.Option("--play", help="Play it, as --stream; writes no file unless -o is set.")
    ] = False
    latency: Annotated[
        Optional[str],
        typer.Option(help="low: parts of a sentence (with --stream); chunk: whole ones."),
    ] = None
    hops: hops_options.Hops = None
    first_steps: hops_options.FirstSteps = None
    format: Annotated[
        Optional[str],
        typer.Option(help="Of a stream: wav, or pcm (raw s16le, mono, 24 kHz)."),
    ] = None
    voice_seconds: hops_options.VoiceSeconds = None
    flush_after: Annotated[
        Optional[float],
        typer.Option(
            help="Seconds after which arriving text is read out in mid-sentence; 0: off.",
            show_default=f"{FLUSH_AFTER:g}",
        ),
    ] = None

    @property
    def streams(self) -> bool:
        """Whether sound is given out as it is made."""
        return self.stream or self.play

    @property
    def seconds_to_flush(self) -> float:
        """Seconds after which arriving text is read out; 0: never."""
        return FLUSH_AFTER if self.flush_after is None else self.flush_after

    def check(self, output: str | None, subtype: str | None, *, arrives: bool) -> None:
        """Check the options together.

        Args:
            arrives: the text comes at standard input, and is read as it comes.

        Raises:
            InputError: unknown values, or options that exclude each other.
        """
        if self.latency not in (None, *LATENCIES):
            raise InputError(f"--latency is '{self.latency}'; known: {', '.join(LATENCIES)}")
        if self.latency == LOW and not self.streams:
            raise InputError("--latency low is for --stream or --play")
        if self.play and find_spec("sounddevice") is None:  # before a model is loaded
            raise InputError(f"sounddevice is not installed: {REMEDY}")
        whole = self.chosen_latency(HopSchedule()) == CHUNK
        if whole and (self.hops, self.first_steps) != (None, None):
            raise InputError("--hops and --first-steps are for --stream with low latency")
        if not 0 <= self.seconds_to_flush <= 3600:
            raise InputError(f"--flush-after is {self.seconds_to_flush:g}; use 0 to 3600 seconds")
        if self.flush_after is not None and not arrives:
            raise InputError("--flush-after is for text that arrives: - with --stream or --play")
        to_stream = self.streams and output is not None and audio_files.is_stream(output)
        if self.format is not None:
            streaming.check_format(self.format)
            if not to_stream:
                raise InputError("--format is for --stream to standard output or a pipe (-o -)")
        if to_stream and subtype is not None:
            raise InputError("--subtype is for files; a stream has 16 bits")

    def output(self, output: str | None) -> str | None:
        """Where the sound is written; None: only played."""
        if output is None:
            return None if self.play else DEFAULT_OUTPUT
        return output

    def chosen_latency(self, default: HopSchedule) -> str | HopSchedule:
        """For the engine, whose schedule is ``default``.

        Raises:
            InputError: impossible sizes of parts.
        """
        if self.latency == CHUNK or not self.streams:
            return CHUNK
        return hops_options.hop_schedule(default, self.hops, self.first_steps)


class Sinks:
    """Where sound goes: a file or a stream, and the sound device.

    Attributes:
        first_audio: seconds from the start until sound was there; None: none yet.
        playback: what was heard; None: nothing was played.
    """

    def __init__(self, sinks: list[WaveSink], player: Player | None, started: float) -> None:
        self._sinks, self._player, self._started = sinks, player, started
        self.first_audio: float | None = None
        self.playback: Playback | None = None

    def write(self, wave: Wave) -> None:
        """Hand float32 [n] to all."""
        if self.first_audio is None and len(wave):
            self.first_audio = time.monotonic() - self._started
        for sink in self._sinks:
            sink.write(wave)

    def finish(self) -> None:
        """Play to the end."""
        if self._player is not None:
            self.playback = self._player.finish()


@contextmanager
def open_sinks(
    chosen: StreamOptions,
    latency: str | HopSchedule,
    output: str | None,
    subtype: str | None,
    letters: int | None,
    rate: float,
) -> Iterator[Sinks]:
    """Open what the options name; a file appears when the block ends, sound is silent at once.

    Args:
        latency: ``chosen``'s for the engine.
        letters: of the text, if it is known.
        rate: at which it is spoken.

    Raises:
        InputError, DeviceError: nothing can be played here.
        OutputError: it cannot be written.
    """
    with ExitStack() as stack:
        sinks: list[WaveSink] = []
        started = time.monotonic()
        player = None
        if chosen.play:
            total = None if letters is None else letters * SECONDS_PER_LETTER / rate
            parts = latency.seconds if isinstance(latency, HopSchedule) else ()
            schedule = [seconds / rate for seconds in parts]
            prebuffer = Prebuffer(started, schedule=schedule, total=total)
            player = stack.enter_context(Player(prebuffer))
            sinks.append(player)
        if output is not None and chosen.streams and audio_files.is_stream(output):
            writer = streaming.stream_writer(output, chosen.format or streaming.WAV)
            sinks.append(stack.enter_context(writer))
        elif output is not None:
            sinks.append(stack.enter_context(audio_files.writer(output, subtype)))
        yield Sinks(sinks, player, started)


@contextmanager
def arriving_text(flush_after: float) -> Iterator[Iterator[str | None]]:
    """Standard input as it arrives.

    Args:
        flush_after: seconds; 0: a pause of the writer does not matter.

    Raises:
        InputError: it is closed.
    """
    from chatterbox_opt.text.arriving import ArrivingText

    source = cast("RawIOBase", streams.standard_input(STDIN_REMEDY).raw)
    with ArrivingText(source, flush_after or None) as pieces:
        yield iter(pieces)
