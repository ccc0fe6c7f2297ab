"""Options of the command ``batch``, in groups.

Responsible for their names, defaults, help and ranges. Not responsible for what is done with them
(command.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import typer

from chatterbox_opt.audio import containers
from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio.loudness import check_target
from chatterbox_opt.audio.tags import Tags, one_line, read_cover
from chatterbox_opt.batch import executors, filenames, job_file
from chatterbox_opt.batch.descriptions import CaptionFormat
from chatterbox_opt.batch.job_file import ReadOptions
from chatterbox_opt.batch.joining.join import Pauses
from chatterbox_opt.batch.joining.mastering import Master
from chatterbox_opt.batch.joining.timeline import STRETCH, Overrun, Timing
from chatterbox_opt.batch.metadata import Metadata
from chatterbox_opt.batch.readers.captions import Captions
from chatterbox_opt.batch.readers.prose import Split
from chatterbox_opt.batch.verify import MAX_WER, Verifier
from chatterbox_opt.cli.options import check_retries
from chatterbox_opt.cli.synth.script import ScriptOptions
from chatterbox_opt.config.speaking_rate import MAX_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.text.decoding import check_encoding

FORMATS = [extension.strip(".") for extension in containers.FORMATS]


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How the job file is read."""

    split: Annotated[
        Optional[Split],
        typer.Option(help="What an item of a .txt is.", show_default=Split.AUTO.value),
    ] = None
    captions: Annotated[
        Optional[Captions],
        typer.Option(
            help="Subtitles: speech leaves out [sounds], (noises) and NAMES:; names keeps NAMES:.",
            show_default=f"{Captions.SPEECH.value}, with --cast {Captions.NAMES.value}",
        ),
    ] = None
    encoding: Annotated[
        Optional[str], typer.Option(help="Encoding of the file (default: UTF-8).")
    ] = None
    alt_texts: Annotated[
        bool,
        typer.Option("--alt-texts", help="Speak alternative texts of pictures (.epub, .html)."),
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be made; loads no model.")
    ] = False

    def check(self, file: str) -> None:
        """Raise InputError for an unknown encoding, or an option of another format.

        Args:
            file: the job file, or ``-``.
        """
        if self.encoding is not None:
            check_encoding(self.encoding)
        kind = ".txt" if file == job_file.STDIN else Path(file).suffix.lower()
        for option, is_given, kinds in (
            ("--split", self.split is not None, job_file.TEXTS),
            ("--captions", self.captions is not None, job_file.SUBTITLES),
            ("--alt-texts", self.alt_texts, job_file.BOOKS),
        ):
            if is_given and kind in job_file.FORMATS and kind not in kinds:
                raise InputError(f"{option} is for {', '.join(kinds)}: drop it")

    def read_options(self, script: ScriptOptions) -> ReadOptions:
        """For ``job_file.read``.

        Raises:
            InputError: a lexicon or a cast that cannot be read.
        """
        cast, captions = script.speakers(), self.captions
        if captions is None:
            captions = Captions.SPEECH if cast is None else Captions.NAMES
        split = Split.AUTO if self.split is None else self.split
        how = (script.markup, script.words(), cast)
        return ReadOptions(split, captions, self.encoding, *how, alt_texts=self.alt_texts)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Which files are written."""

    out_dir: Annotated[Optional[Path], typer.Option("--out-dir", help="Output directory.")] = None
    format: Annotated[str, typer.Option(help=f"{', '.join(FORMATS)}.")] = "wav"
    name: Annotated[
        str, typer.Option(help="File name pattern; fields {id}, {slug} (the first words).")
    ] = filenames.DEFAULT
    loudness: Annotated[
        Optional[float], typer.Option(help="Bring every file to this loudness, in LUFS (-18).")
    ] = None
    metadata: Annotated[
        Optional[Metadata], typer.Option(help="Also write metadata.csv, for a data set.")
    ] = None
    timestamps: Annotated[
        Optional[CaptionFormat],
        typer.Option(help="Also write when words are heard, next to each file and to --join's."),
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Synthesize all items again.")] = False
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no earlier run wrote, too.")
    ] = False
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete files of earlier runs that have no item now.")
    ] = False

    def check(self) -> None:
        """Raise InputError for an unknown format or pattern, or a loudness out of range."""
        if self.format not in FORMATS:
            raise InputError(f"format is '{self.format}'; known: {', '.join(FORMATS)}")
        filenames.check_pattern(self.name)
        if self.loudness is not None:
            check_target(self.loudness)

    @property
    def directory(self) -> Path:
        """The output directory; raises InputError if there is none."""
        if self.out_dir is None:
            raise InputError("pass --out-dir DIR, or --dry-run to see what would be made")
        return self.out_dir


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """The joined file."""

    joined_file: Annotated[
        Optional[str],
        typer.Option("--join", help="Also write everything as one file; .m4b has chapters."),
    ] = None
    title: Annotated[
        Optional[str], typer.Option(help="Title in the joined file (default: the book's).")
    ] = None
    author: Annotated[
        Optional[str], typer.Option(help="Author in the joined file (default: the book's).")
    ] = None
    cover: Annotated[
        Optional[Path],
        typer.Option(help="JPEG or PNG in the joined file (default: the book's)."),
    ] = None
    master: Annotated[
        Optional[Master],
        typer.Option(help="Loudness, peaks and room tone of the joined file, for shops."),
    ] = None
    pause: Annotated[
        Optional[float],
        typer.Option(
            help="Seconds between items in the joined file.", show_default=f"{Pauses().item:g}"
        ),
    ] = None
    chapter_pause: Annotated[
        Optional[float],
        typer.Option(
            help="Seconds before a chapter and at a scene break.",
            show_default=f"{Pauses().chapter:g}",
        ),
    ] = None
    keep_silence: Annotated[
        bool, typer.Option("--keep-silence", help="Keep each file's own silence at both ends.")
    ] = False
    timed: Annotated[
        bool, typer.Option("--timed", help="Subtitles: each cue at its time in the joined file.")
    ] = False
    stretch: Annotated[
        Optional[float],
        typer.Option(
            help="With --timed: how much faster a cue may be that is too long.",
            show_default=f"{STRETCH:g}",
        ),
    ] = None
    overrun: Annotated[
        Optional[Overrun],
        typer.Option(
            help="With --timed: what becomes of a cue that is longer even so.",
            show_default=Overrun.OVERLAP.value,
        ),
    ] = None

    def check(self) -> None:
        """Raise InputError for a number out of range, an unknown extension, or options that need a
        joined file, one with tags, or one without times."""
        pauses = self.pauses()
        if not all(0 <= seconds <= 60 for seconds in (pauses.item, pauses.chapter)):
            raise InputError("--pause and --chapter-pause take 0 to 60 seconds")
        if self.stretch is not None and not 1 <= self.stretch <= MAX_RATE:
            raise InputError(f"--stretch is {self.stretch:g}; use 1 to {MAX_RATE:g}")
        self._check_joined()
        if self.timed:
            self._check_timed()
        elif (self.stretch, self.overrun) != (None, None):
            raise InputError("--stretch and --overrun are for --timed: add it, or drop them")

    def _check_joined(self) -> None:
        """Check what only a joined file has, of any format or of some."""
        is_joined = self.joined_file is not None
        extension = None if self.joined_file is None else audio_files.extension_of(self.joined_file)
        if self.timed and not is_joined:
            raise InputError("--timed is for the joined file: give --join FILE")
        if self.master is not None and not is_joined:
            raise InputError("--master is for a joined file: add --join FILE")
        asked = (self.title, self.author, self.cover) != (None, None, None)
        if asked and not (extension and containers.has_tags(extension)):
            raise InputError(
                "--title, --author and --cover are for a joined file that has room for them: add "
                "--join FILE.m4b (or .m4a, .mp3, .opus)"
            )
        if self._asks_for_pauses and not is_joined:
            raise InputError(
                "--pause, --chapter-pause and --keep-silence are for a joined file: add --join FILE"
            )

    def _check_timed(self) -> None:
        """Check what a joined file with times has not."""
        if self.keep_silence:
            raise InputError("--timed leaves out each file's own silence: drop --keep-silence")
        if self._asks_for_pauses:
            raise InputError(
                "--timed has the pauses of the subtitles: drop --pause and --chapter-pause"
            )
        if self.master is not None:
            raise InputError("--master adds silence at both ends, --timed has none: drop one")

    @property
    def _asks_for_pauses(self) -> bool:
        return (self.pause, self.chapter_pause, self.keep_silence) != (None, None, False)

    def timing(self) -> Timing | None:
        """For ``dub``; None: cues have no times."""
        if not self.timed:
            return None
        return Timing(
            STRETCH if self.stretch is None else self.stretch,
            Overrun.OVERLAP if self.overrun is None else self.overrun,
        )

    def tags(self, of_file: Tags) -> Tags:
        """What the joined file says about itself.

        Args:
            of_file: what the job file says about itself.

        Raises:
            InputError: the cover cannot be read.
        """
        return Tags(
            of_file.title if self.title is None else one_line(self.title),
            of_file.author if self.author is None else one_line(self.author),
            of_file.cover if self.cover is None else read_cover(self.cover),
        )

    def pauses(self) -> Pauses:
        """For ``join``."""
        default = Pauses()
        return Pauses(
            default.item if self.pause is None else self.pause,
            default.chapter if self.chapter_pause is None else self.chapter_pause,
            self.keep_silence,
        )


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What counts as a failure, and how often it is retried."""

    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = (
        False
    )
    retries: Annotated[
        int, typer.Option(help="Further attempts at output that fails the quality checks.")
    ] = 2
    verify: Annotated[
        Optional[str],
        typer.Option(help="Command that prints a wav's transcript; {} is its path, else appended."),
    ] = None
    max_wer: Annotated[
        Optional[float],
        typer.Option(
            help="Maximum word error rate for --verify (0.2 = 20 %).", show_default=f"{MAX_WER:g}"
        ),
    ] = None

    def check(self) -> None:
        """Raise InputError for a number of retries out of range, or an option without --verify."""
        check_retries(self.retries)
        if self.max_wer is not None and self.verify is None:
            raise InputError("--max-wer is for --verify COMMAND: add it, or drop --max-wer")

    def verifier(self) -> Verifier | None:
        """The verifier, if a command is set.

        Raises:
            InputError: it cannot be run.
        """
        if self.verify is None:
            return None
        return Verifier.of(self.verify, MAX_WER if self.max_wer is None else self.max_wer)


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where the engines run."""

    workers: Annotated[
        Optional[int], typer.Option(help="Worker processes; GPUs or cores are divided among them.")
    ] = None
    executor: Annotated[
        str, typer.Option(help="process (on this machine) or ray (on a cluster).")
    ] = executors.PROCESS
    ray_address: Annotated[
        Optional[str],
        typer.Option(help="Ray address (default: $RAY_ADDRESS, else a local cluster)."),
    ] = None
