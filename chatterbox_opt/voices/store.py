"""The voice store on disk: named recordings, and Voices already computed from recordings.

Responsible for one directory. Not responsible for computing a Voice; torch is imported only when a
Voice is read or written. A named voice is a copy of the recording, so it works with every model; a
computed one is valid for a recording's content, a model's encoders and ``FORMAT``.

    DIR/named/anna.wav
    DIR/computed/<key>.safetensors
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.errors import VoiceError
from chatterbox_opt.utils.atomic_file import atomic_write

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

FORMAT = 1  # of the computed files; changing it recomputes all of them
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """``CHATTERBOX_VOICE_CACHE``, or the platform's cache directory for this tool (not created)."""
    import platformdirs

    if directory := os.environ.get("CHATTERBOX_VOICE_CACHE"):
        return Path(directory)
    return Path(platformdirs.user_cache_dir("chatterbox-opt")) / "voices"


def content_key(path: Path, model: str) -> str:
    """Cache key of a recording: hex, safe as a file name.

    Args:
        model: identity of the encoders (``Checkpoint.voice_identity``).
    """
    digest = hashlib.blake2b(digest_size=20)
    digest.update(f"{FORMAT}\n{model}\n".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class VoiceStore:
    """Voices below one directory. Safe with several processes: files are renamed into place.

    Attributes:
        directory: created by the first write.
        keep_computed: whether computed Voices are read and written (False with ``--no-cache``).
    """

    directory: Path = field(default_factory=default_directory)
    keep_computed: bool = True

    def names(self) -> dict[str, Path]:
        """Named voices, sorted, with their recordings."""
        paths = sorted((self.directory / "named").glob("*"))
        return {path.stem: path for path in paths if _NAME.fullmatch(path.stem)}

    def find(self, voice: str, shipped: Mapping[str, Path] | None = None) -> Path:
        """Resolve a file name or a voice name (the value of ``--voice``) to a path.

        Args:
            shipped: voices that come with the model; a saved recording of the same name wins.

        Returns:
            a recording (not checked), or the file of a shipped voice.

        Raises:
            VoiceError: neither a file nor a known name.
        """
        names = dict(shipped or {}) | self.names()
        if os.path.isfile(voice) or not (_NAME.fullmatch(voice) or voice in names):
            return Path(voice)
        if voice not in names:
            if os.path.isdir(voice):
                raise VoiceError(f"voice '{voice}' is a directory; use an audio file")
            known = ", ".join(names) or "none yet; chatterbox-opt voices add NAME FILE"
            raise VoiceError(f"there is no file and no voice '{voice}'; known: {known}")
        return names[voice]

    def add(self, name: str, recording: Path) -> Path:
        """Store a copy of ``recording`` under ``name``, replacing an older one.

        Raises:
            VoiceError: the name has characters other than letters, digits, ``-`` and ``_``.
        """
        if not _NAME.fullmatch(name):
            raise VoiceError(
                f"'{name}' is not a valid voice name; use letters, digits, - and _ (at most 64)"
            )
        previous = self.names().get(name)
        target = self.directory / "named" / f"{name}{recording.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as part:
            shutil.copyfile(recording, part)
        if previous and previous != target:  # another extension
            previous.unlink(missing_ok=True)
        return target

    def remove(self, name: str) -> None:
        """Delete a named voice.

        Raises:
            VoiceError: no such name.
        """
        names = self.names()
        if name not in names:
            raise VoiceError(
                f"there is no saved voice '{name}'; saved: {', '.join(names) or 'none'}"
            )
        names[name].unlink(missing_ok=True)

    def clear(self) -> int:
        """Delete all named and computed voices; return the number of files."""
        files = [f for kind in ("named", "computed") for f in (self.directory / kind).glob("*")]
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def computed(self) -> int:
        """Number of computed voices."""
        return len(list((self.directory / "computed").glob("*.safetensors")))

    def load(self, key: str) -> Voice | None:
        """Return the computed Voice, or None if it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from chatterbox_opt.voice import from_tensors

        path = self._computed(key)
        if not self.keep_computed or not path.exists():
            return None
        try:
            return from_tensors(load_file(path))
        except (SafetensorError, KeyError, OSError) as error:
            log.warning("cached voice %s is damaged (%s): computed again", path.name, error)
            return None

    def save(self, key: str, voice: Voice) -> None:
        """Store a computed Voice; if that fails, a warning is logged."""
        from safetensors.torch import save

        if not self.keep_computed:
            return
        content = save({name: t.contiguous().clone() for name, t in voice.tensors().items()})
        target = self._computed(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as part:
                part.write_bytes(content)
        except OSError as error:
            log.warning("the voice was not cached in %s (%s)", self.directory, error.strerror)

    def _computed(self, key: str) -> Path:
        return self.directory / "computed" / f"{key}.safetensors"
