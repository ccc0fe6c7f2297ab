"""Verifies audio by an external speech recognizer: a command that transcribes a wav.

Responsible for running the command and for its word error rate (eval/wer.py). Not responsible for
synthesis or retries. The command is split as a shell would split it, but no shell runs it, so
nothing in a text or file name can be executed.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.errors import ChatterboxOptError, InputError
from chatterbox_opt.eval import wer
from chatterbox_opt.text.detection import detect
from chatterbox_opt.text.languages import AUTO, LANGUAGES

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

PATH_FIELD = "{}"  # in the command, replaced by the wav's path; without it the path is appended
TIMEOUT = 600.0  # seconds
MAX_WER = 0.2


class VerifierError(ChatterboxOptError):
    """The command returned no transcript."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Transcribes audio by a command that gets a wav's path and prints the text.

    Attributes:
        command: the program and its arguments.
        max_wer: word error rate up to which the audio is accepted.
    """

    command: tuple[str, ...]
    max_wer: float = MAX_WER

    @classmethod
    def of(cls, command: str, max_wer: float = MAX_WER) -> Verifier:
        """Parse and check a command line.

        Raises:
            InputError: no such program, an unclosed quote, or jiwer is not installed.
        """
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise InputError(
                f"--verify '{command}' cannot be parsed ({error}): correct it"
            ) from error
        if not parts or PATH_FIELD in parts[0]:
            raise InputError(f"--verify '{command}' names no program: put one first")
        if shutil.which(parts[0]) is None:
            raise InputError(
                f"--verify: there is no program '{parts[0]}'; install it, or give its path"
            )
        if not max_wer >= 0:  # nor if it is not a number
            raise InputError(f"--max-wer is {max_wer}; give a value from 0")
        wer.word_errors("a", "a")  # raises if jiwer is missing
        return cls(tuple(parts), max_wer)

    def word_error_rate(
        self, texts: Iterable[str], waves: Iterable[Wave], language: str | None = None
    ) -> float:
        """Word errors per word of the text that fits best.

        Args:
            texts: what may be heard: a recognizer may write a name as a person does, or as it
                sounds.
            language: of the texts, a code, ``AUTO`` or None.

        Raises:
            InputError: as ``detect``, for ``AUTO``.
            VerifierError: the command failed or took too long.
        """
        transcript, references = self.transcribe(waves), dict.fromkeys(texts)
        if language == AUTO:
            language = detect(" ".join(references), LANGUAGES)
        return min(wer.rate(wer.word_errors(text, transcript, language)) for text in references)

    def transcribe(self, waves: Iterable[Wave]) -> str:
        """The command's transcript of the waves, joined. Raises ``VerifierError``."""
        with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as scratch:
            path = str(Path(scratch) / "audio.wav")
            with audio_files.writer(path) as sink:
                for wave in waves:
                    sink.write(wave)
            command = [part.replace(PATH_FIELD, path) for part in self.command]
            if command == list(self.command):
                command.append(path)
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=TIMEOUT,
                    start_new_session=True,  # Ctrl-C must not reach it: the item is finished
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise VerifierError(f"--verify failed ({error}): try it by hand") from error
        if done.returncode != 0:
            reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise VerifierError(f"--verify ended with {done.returncode} ({reason}): try it by hand")
        return done.stdout.decode("utf-8", "replace")
