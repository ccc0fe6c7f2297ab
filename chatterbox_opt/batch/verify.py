"""A second opinion on what was said: the person's own recognizer, a command.

Knows how to call it and how to count word errors (wer.py). Knows nothing of engines. The command
is split as a shell would split it but no shell runs it: nothing in a text or a file name is ever
read as a command.
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

if TYPE_CHECKING:
    from chatterbox_opt.request import Wave

FILE = "{}"  # in the command, where the wav's path goes; else it goes to the end
TIMEOUT = 600.0  # seconds
MAX_WER = 0.2


class VerifierError(ChatterboxOptError):
    """The command did not say what it heard."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """Hears utterances by a command that gets a wav's path and prints the words.

    Attributes:
        command: the program and its arguments.
        max_wer: word errors by word up to which an utterance is good.
    """

    command: tuple[str, ...]
    max_wer: float = MAX_WER

    @classmethod
    def of(cls, command: str, max_wer: float = MAX_WER) -> Verifier:
        """Check a command as the person typed it.

        Raises:
            InputError: no such program, quotes that do not close, or the extra is not installed.
        """
        try:
            parts = shlex.split(command)
        except ValueError as error:
            raise InputError(f"--verify '{command}' cannot be split ({error}): mend it") from error
        if not parts or shutil.which(parts[0]) is None:
            raise InputError(f"--verify: there is no program '{command}'; give its path")
        if max_wer < 0:
            raise InputError(f"--max-wer is {max_wer}; give a value from 0")
        wer.word_errors("a", "a")  # says now what to install
        return cls(tuple(parts), max_wer)

    def word_error_rate(self, text: str, waves: Iterable[Wave]) -> float:
        """Word errors by word of ``text``.

        Raises:
            HearingError: the command failed, took too long, or printed what is no text.
        """
        errors, words = wer.word_errors(text, self._heard(waves))
        return errors / max(words, 1)

    def _heard(self, waves: Iterable[Wave]) -> str:
        with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as scratch:
            path = str(Path(scratch) / "heard.wav")
            with audio_files.writer(path) as sink:
                for wave in waves:
                    sink.write(wave)
            call = [part.replace(FILE, path) for part in self.command]
            if call == list(self.command):
                call.append(path)
            try:
                done = subprocess.run(
                    call,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=TIMEOUT,
                    start_new_session=True,  # Ctrl-C lets the item be finished
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise VerifierError(f"--verify did not answer ({error}): try it by hand") from error
        if done.returncode != 0:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise VerifierError(f"--verify ended with {done.returncode} ({last}): try it by hand")
        return done.stdout.decode("utf-8", "replace")
