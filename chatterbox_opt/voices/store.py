"""The voice store on disk: saved recordings with names, and Voices computed from recordings.

Responsible for its directories. Not responsible for computing a Voice or for the format of its file
(voices/computed_voices.py). A saved voice is a copy of the recording, so it works with every model;
a computed one is valid for a recording's content, a model's encoders and ``FORMAT``.

    SAVED/anna.wav                        the user's data
    CACHE/computed/<key>.safetensors      can be computed again
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chatterbox_opt.audio import recordings
from chatterbox_opt.errors import VoiceError
from chatterbox_opt.utils import cache_directory
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.voices import computed_voices, saved_voices

if TYPE_CHECKING:
    from chatterbox_opt.voice import Voice

SAVED_VARIABLE = "CHATTERBOX_VOICES"
CACHE_VARIABLE = "CHATTERBOX_VOICE_CACHE"
NAMED, COMPUTED = "named", "computed"  # folders of the cache

log = logging.getLogger(__name__)


def default_directory() -> Path:
    """``CHATTERBOX_VOICE_CACHE``, or the platform's cache directory for this tool (not created)."""
    import platformdirs

    if directory := os.environ.get(CACHE_VARIABLE):
        return Path(directory)
    return Path(platformdirs.user_cache_dir("chatterbox-opt")) / "voices"


def default_store(directory: Path | None = None, *, keep_computed: bool = True) -> VoiceStore:
    """The store that the command line and ``Engine.load`` use.

    Saved voices are in ``CHATTERBOX_VOICES`` or the platform's data directory. Where a cache
    directory is named, by the argument or by ``CHATTERBOX_VOICE_CACHE``, they stay in it, as they
    did before there was a data directory; ``CHATTERBOX_VOICES`` wins over the latter.

    Args:
        directory: of the cache; None is ``default_directory()``.
    """
    import platformdirs

    cache = directory or default_directory()
    named = os.environ.get(SAVED_VARIABLE)
    if directory or (os.environ.get(CACHE_VARIABLE) and not named):
        return VoiceStore(cache, keep_computed)
    saved_in = Path(named or Path(platformdirs.user_data_dir("chatterbox-opt")) / "voices")
    is_same = saved_in.resolve() == (cache / NAMED).resolve()
    return VoiceStore(cache, keep_computed, saved_in, earlier=None if is_same else cache / NAMED)


def content_key(path: Path, model: str) -> str:
    """Cache key of a recording: hex, safe as a file name.

    Args:
        path: a regular file.
        model: identity of the encoders (``Checkpoint.voice_identity``).

    Raises:
        VoiceError: the file cannot be used, or is a pipe.
    """
    recordings.check_file(path)
    if recordings.is_pipe(path):
        raise VoiceError(f"'{path}' is a pipe, which can be read only once; use a file")
    digest = hashlib.blake2b(digest_size=20)
    # "1" is of all keys so far: batch manifests have them, so they must not change
    digest.update(f"1\n{model}\n".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class VoiceStore:
    """Saved and computed voices. Safe with several processes: files are renamed into place.

    Attributes:
        directory: the cache; created by the first write.
        keep_computed: whether computed Voices are read and written (False with ``--no-cache``).
        saved: directory of the saved voices; None is ``named`` in the cache.
        earlier: directory from which saved voices are moved to ``saved`` when they are first used.
    """

    directory: Path
    keep_computed: bool = True
    saved: Path | None = None
    earlier: Path | None = None

    @property
    def saved_directory(self) -> Path:
        """Directory of the saved voices."""
        return self.saved or self.directory / NAMED

    def names(self) -> dict[str, Path]:
        """Saved voices, sorted, with their recordings; moves those of an older version here."""
        if self.earlier is None:
            return saved_voices.voices(self.saved_directory)
        saved_voices.move(self.earlier, self.saved_directory)
        # one that could not be moved, to a full disk for example, is used where it is
        return dict(
            sorted(
                (
                    saved_voices.voices(self.earlier) | saved_voices.voices(self.saved_directory)
                ).items()
            )
        )

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
        is_file = os.path.exists(voice) and not os.path.isdir(voice)
        if is_file or not (saved_voices.NAME.fullmatch(voice) or voice in names):
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
            OSError: the directory cannot be written to.
        """
        if not saved_voices.NAME.fullmatch(name):
            raise VoiceError(
                f"'{name}' is not a valid voice name; use letters, digits, - and _ (at most 64)"
            )
        self.names()  # moves those of an older version
        target = self.saved_directory / f"{name}{recording.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        replaced = self._recordings(name)  # not what another process writes meanwhile
        with atomic_write(target) as part:
            shutil.copyfile(recording, part)
        for path in replaced:
            if path != target:  # another extension, none, or one that could not be moved here
                path.unlink(missing_ok=True)
        return target

    def _recordings(self, name: str) -> list[Path]:
        """All recordings of a saved name, those that could not be moved here included."""
        directories = filter(None, (self.saved_directory, self.earlier))
        return [p for place in directories for p in saved_voices.recordings_of(name, place)]

    def remove(self, name: str) -> Path:
        """Delete a saved voice; return the path that its recording had.

        Raises:
            VoiceError: no such name.
        """
        names = self.names()
        if name not in names:
            raise VoiceError(
                f"there is no saved voice '{name}'; saved: {', '.join(names) or 'none'}"
            )
        self._delete(name)
        return names[name]

    def _delete(self, name: str) -> None:
        for path in self._recordings(name):
            path.unlink(missing_ok=True)

    def clear(self) -> int:
        """Delete all computed voices; return their number."""
        there = cache_directory.listed(self.directory / COMPUTED)
        files = [path for path in there if os.path.isfile(path)]
        for file in files:
            file.unlink(missing_ok=True)
        return len(files)

    def clear_saved(self) -> int:
        """Delete all saved voices, which cannot be computed again; return their number."""
        names = self.names()
        for name in names:
            self._delete(name)
        return len(names)

    def computed(self) -> int:
        """Number of computed voices."""
        there = cache_directory.listed(self.directory / COMPUTED)
        return sum(path.suffix == ".safetensors" for path in there)

    def load(self, key: str) -> tuple[Voice, str] | None:
        """Return a computed Voice and the remark on its recording, or None if there is none.

        A file that is not as it was written is deleted, with a warning.
        """
        path = self._computed(key)
        if not self.keep_computed or not os.path.exists(path):
            return None
        try:
            return computed_voices.read(path, key)
        except (ValueError, OSError) as error:
            log.warning("cached voice %s is damaged (%s): computed again", path.name, error)
            cache_directory.discard(path)
            return None

    def save(self, key: str, voice: Voice, remark: str = "") -> None:
        """Store a computed Voice; if that fails, a warning is logged."""
        if not self.keep_computed:
            return
        content = computed_voices.dump(key, voice, remark)
        target = self._computed(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as part:
                part.write_bytes(content)
        except OSError as error:
            log.warning("the voice was not cached in %s (%s)", self.directory, error.strerror)

    def _computed(self, key: str) -> Path:
        return self.directory / COMPUTED / f"{key}.safetensors"
