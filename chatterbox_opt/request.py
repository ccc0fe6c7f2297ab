"""Inputs and outputs of the engine: requests, progress, pieces, results.

Responsible for these values. Not responsible for computing them or for audio formats
(audio/files.py). Audio of the same content is equal, whatever time its computation took.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Number
from typing import TYPE_CHECKING, TypeAlias

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.config.speaking_rate import check_rate
from chatterbox_opt.errors import InputError, TextError, VoiceError
from chatterbox_opt.sampling import Sampling, seeded
from chatterbox_opt.script.cast import Cast
from chatterbox_opt.script.lexicon import Lexicon
from chatterbox_opt.text.languages import check_language
from chatterbox_opt.utils import arguments
from chatterbox_opt.utils.arguments import shown
from chatterbox_opt.utils.wave import Wave
from chatterbox_opt.words.word import Word, joined

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

# a Voice; a recording's path; the name of a saved voice or of one that comes with the model; or
# None for the model's own
VoiceSource: TypeAlias = "Voice | str | os.PathLike[str] | None"


CHUNK, LOW = LATENCIES = ("chunk", "low")  # how soon audio is handed over


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one text, reported at every speech token.

    Attributes:
        chunk: index of the current chunk, from 0.
        chunks: number of chunks.
        characters: length of the current chunk.
        tokens: speech tokens generated for it so far.
    """

    chunk: int
    chunks: int
    characters: int
    tokens: int


Observer = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Piece:
    """Audio of one chunk with the pause after it; with low latency, of a part of one.

    Attributes:
        samples: float32 [n] in [-1, 1] at 24 kHz.
        text, tokens: the normalized chunk, and the number of its speech tokens.
        seconds: processing time by stage (t3, flow, vocoder, watermark).
        part: number of the part in its chunk, from 0.
        ends_chunk: whether it is the last of its chunk.
        faults: detected by a guard in the best attempt (see engine/quality.py).
        attempts: number of times that it was synthesized.
        words: of the chunk, in seconds of it, if asked for; with low latency with its last part.
    """

    samples: Wave
    text: str
    tokens: int
    seconds: Mapping[str, float]
    faults: tuple[str, ...] = ()
    attempts: int = 1
    part: int = 0
    ends_chunk: bool = True
    words: tuple[Word, ...] = ()

    def __eq__(self, other: object) -> bool:
        return _same_audio(self, other)

    def __repr__(self) -> str:
        checked = self.attempts > 1 or self.faults
        more = f", faults={self.faults}, attempts={self.attempts}" if checked else ""
        if self.part or not self.ends_chunk:
            more = f", part={self.part}, ends_chunk={self.ends_chunk}{more}"
        return f"Piece({self.text!r}, {self.duration:.2f} s, tokens={self.tokens}{more})"

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audio:
    """Audio of a whole text.

    Attributes:
        samples: float32 [n] in [-1, 1].
        sample_rate: 24000.
        seed: reproduces the samples on the same machine and plan.
        tokens: total number of speech tokens.
        seconds: processing time by stage.
        words: when each is heard, if asked for.
    """

    samples: Wave
    sample_rate: int
    seed: int
    tokens: int
    seconds: Mapping[str, float]
    words: tuple[Word, ...] = ()

    def __eq__(self, other: object) -> bool:
        return _same_audio(self, other)

    def __repr__(self) -> str:
        rate, seed = self.sample_rate, self.seed
        return f"Audio({self.duration:.2f} s, {rate} Hz, seed={seed}, tokens={self.tokens})"

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return len(self.samples) / self.sample_rate

    def save(self, path: str | os.PathLike[str], subtype: str | None = None) -> None:
        """Write a mono file, completely or not at all; an existing file is replaced.

        Args:
            path: its extension is the format: wav, flac, ogg, mp3, opus, m4a or m4b.
            subtype: sample format, such as "PCM_24" or "FLOAT" for wav; None: 16 bit where it has.

        Raises:
            InputError: unknown extension or subtype, no such directory, or a directory.
            OutputError: the disk is full, or the file cannot be written.
        """
        name = arguments.name_or_path("path", path)
        arguments.instance("subtype", subtype, str, optional=True)
        if self.sample_rate != SAMPLE_RATE:
            raise InputError(f"the rate is {self.sample_rate} Hz; only {SAMPLE_RATE} Hz is written")
        if name == audio_files.STDOUT:  # of the command line; here it is a name like any other
            name = os.path.join(os.curdir, name)
        audio_files.output_format(name, subtype)
        audio_files.check_writable(name)
        with audio_files.writer(name, subtype) as sink:
            sink.write(self.samples)


@dataclass(frozen=True, slots=True)
class Request:
    """One text of a batch.

    Attributes:
        id: returned with the result.
        text: of any length.
        voice: a Voice, a path, a name, or None for the model's own; see ``Engine.voice``.
        sampling: parameters; without a seed one is drawn, and returned with the result.
        latency: ``CHUNK``: a piece is a whole chunk; ``LOW`` or a ``HopSchedule``: parts of a
            chunk, of the same tokens; the sound differs a little (docs/accuracy.md).
        language: such as "de", for models that know several; "auto": detected; None: not told.
        rate: how fast it is spoken, 0.5 to 2, at the same pitch and with pauses as long as at 1.
        markup: tags such as [pause:1s] in the text, or SSML, are more than text (docs/script.md).
        lexicon: words that are said in another form than they are written in.
        cast: who speaks the lines ``NAME: words`` of a dialogue, and what [voice:NAME] means.
        timestamps: tell when each word is heard, as the person wrote it (``Piece.words``).

    Raises:
        TextError, VoiceError, InputError: text, voice, sampling, latency, language, rate, lexicon
            or cast is of another type; an unknown language; a rate out of range.
    """

    id: str
    text: str
    voice: VoiceSource = None
    sampling: Sampling = field(default_factory=Sampling)
    latency: str | HopSchedule = CHUNK
    language: str | None = None
    rate: float = 1.0
    markup: bool = False
    lexicon: Lexicon | None = None
    cast: Cast | None = None
    timestamps: bool = False

    def __post_init__(self) -> None:
        check_text(self.text)
        arguments.instance("lexicon", self.lexicon, Lexicon, optional=True)
        arguments.instance("cast", self.cast, Cast, optional=True)
        object.__setattr__(self, "language", check_language(self.language))
        object.__setattr__(self, "rate", check_rate(self.rate))
        if self.latency not in LATENCIES and not isinstance(self.latency, HopSchedule):
            raise InputError(f"latency is {shown(self.latency)}; known: {', '.join(LATENCIES)}")
        # other objects are left to ``Engine.voice``: to know a Voice, torch has to be imported
        if isinstance(self.voice, (Number, Collection, Sampling, os.PathLike)):
            voice_name(self.voice)
        arguments.instance("sampling", self.sampling, Sampling)
        arguments.instance("timestamps", self.timestamps, bool)

    def with_seed(self) -> Request:
        """The same request with a seed, drawn if it has none."""
        return replace(self, sampling=seeded(self.sampling))


@dataclass(frozen=True, slots=True)
class Metrics:
    """Times of one request in seconds; None for what it has not reached.

    Attributes:
        queued: until its first chunk entered a decode slot.
        prefill: from then until its first speech token.
        first_token, first_audio, done: since it was added, until the first speech token, the first
            piece and the end.
        tokens_per_second: speech tokens by the time from the first slot to the last token.
    """

    queued: float | None = None
    prefill: float | None = None
    first_token: float | None = None
    first_audio: float | None = None
    done: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """Outcome of one request: pieces, or an error as a value.

    Attributes:
        id: of the request.
        seed: that was used; reproduces the samples, alone or in any batch.
        pieces: of all chunks, in order; empty if the request failed.
        error: why it failed, or None.
        metrics: its times.
    """

    id: str
    seed: int
    pieces: tuple[Piece, ...] = ()
    error: Exception | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def __repr__(self) -> str:
        audio = f"pieces={len(self.pieces)}, {sum(one.duration for one in self.pieces):.2f} s"
        outcome = audio if self.error is None else f"error={self.error!r}"
        return f"Result({self.id!r}, seed={self.seed}, {outcome})"

    @property
    def words(self) -> tuple[Word, ...]:
        """When each word is heard, if the request asks for them."""
        return joined(self.pieces)

    def audio(self) -> Audio:
        """The pieces joined, as returned by ``Engine.synthesize``.

        Raises:
            Exception: the request's error, if it failed.
        """
        if self.error is not None:
            raise self.error
        return join(list(self.pieces), self.seed)


def check_text(text: object) -> None:
    """Check the type of a text; its content is checked when it is split.

    Raises:
        TextError: it is not a str.
    """
    if isinstance(text, bytes):
        raise TextError(f"the text is {shown(text)}; decode it to a str: text.decode()")
    if not isinstance(text, str):
        raise TextError(f"the text is {shown(text)}; give a str")


def voice_name(voice: object) -> str | None:
    """The name or path of a voice; None for the model's own.

    Raises:
        VoiceError: it is neither, such as a number or bytes.
    """
    name = os.fspath(voice) if isinstance(voice, os.PathLike) else voice
    if name is None or isinstance(name, str):
        return name
    raise VoiceError(f"voice is {shown(voice)}; give a Voice, a voice's name or a path as a str")


def single_request(
    text: str | Request,
    voice: VoiceSource,
    sampling: Sampling | None,
    latency: str | HopSchedule = CHUNK,
    language: str | None = None,
    rate: float = 1.0,
    lexicon: Lexicon | None = None,
) -> Request:
    """The request of one text, or the one that is given, with a seed. Raises as ``Request``."""
    if isinstance(text, Request):
        return text.with_seed()
    how = (Sampling() if sampling is None else sampling, latency, language, rate)
    return Request("", text, voice, *how, lexicon=lexicon).with_seed()


# as ``Engine.batch``: results in any order
SynthesizeBatch = Callable[[Iterable[Request]], Iterator[Result]]


def _same_audio(one: Piece | Audio, other: object) -> bool:
    """Whether the fields are equal, the samples bit for bit; ``seconds`` are not compared."""
    if type(other) is not type(one):
        return NotImplemented
    import numpy as np

    names = [field.name for field in fields(one) if field.name not in ("samples", "seconds")]
    same = all(getattr(one, name) == getattr(other, name) for name in names)
    return same and np.array_equal(one.samples, other.samples)


def faults_of(pieces: Collection[Piece]) -> list[str]:
    """The faults of all chunks, with the number of their chunk if there are several."""
    return [
        fault if len(pieces) == 1 else f"chunk {number}: {fault}"
        for number, piece in enumerate(pieces, 1)
        for fault in piece.faults
    ]


def join(pieces: list[Piece], seed: int) -> Audio:
    """Concatenate pieces."""
    import numpy as np  # not at the top: this module is imported for every ``--help``

    return Audio(
        samples=np.concatenate([piece.samples for piece in pieces]),
        sample_rate=SAMPLE_RATE,
        seed=seed,
        tokens=sum(piece.tokens for piece in pieces),
        seconds=total_seconds(pieces),
        words=joined(pieces),
    )


def total_seconds(pieces: list[Piece]) -> dict[str, float]:
    """Total processing time of pieces by stage."""
    stages = dict.fromkeys(stage for piece in pieces for stage in piece.seconds)
    return {stage: sum(piece.seconds.get(stage, 0.0) for piece in pieces) for stage in stages}
