"""Facts about this machine that ``doctor`` shows: CPU, memory, formats, caches.

Responsible for collecting them as text. Not responsible for what they mean for synthesis
(command.py, config/plan.py).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import stat
from pathlib import Path

from chatterbox_opt.checkpoints import weight_cache
from chatterbox_opt.cli.terminal.tables import short_path
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import first_line
from chatterbox_opt.text.languages import LIBRARIES
from chatterbox_opt.utils.paths import nearest_existing
from chatterbox_opt.voices.store import VoiceStore

COMMON = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64")  # listed first

REMEDY = 'pip install "chatterbox-opt[languages]", Russian\'s: docs/configuration.md'


def version(package: str) -> str | None:
    """The version of an installed package."""
    import importlib.metadata  # imports email and zipfile: not at every command's start

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu() -> str:
    """Name, cores and instruction sets."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = ", ".join(probe.cpu_features()) or "no vector instructions that are used here"
    count = torch.get_num_threads()
    threads = f"{usable} cores, {count} {'thread' if count == 1 else 'threads'}"
    return f"{probe.cpu_name()}, {threads}, {features}"


def memory() -> str:
    """Total and available memory of the machine, without limits of containers."""
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    found = f"{size(page * total)}"
    return f"{found}, {size(available)} available" if (available := _available()) else found


def _available() -> int | None:
    """Bytes that can be used without swapping, on Linux."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) << 10 if "MemAvailable" in fields else None


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def soundfile_formats() -> str:
    """What is read and written without other programs."""
    import soundfile

    known = set(soundfile.available_formats())
    common = [name.lower() for name in COMMON if name in known]
    return f"{', '.join(common)} and {len(known) - len(common)} others (soundfile)"


def decoders() -> str:
    """What decodes other recordings, such as m4a or the sound of a video."""
    found = []
    if importlib.util.find_spec("av") is not None:
        found.append(f"m4a, aac, webm, video by PyAV {version('av')}")
    if program := shutil.which("ffmpeg"):
        found.append(f"ffmpeg ({program})")
    return ", ".join(found) or "none: no PyAV (pip install av) and no ffmpeg program"


def languages() -> str:
    """The languages that need a library, by whether it is here."""
    packages = {code: package for code, (package, _) in LIBRARIES.items()}
    here = [code for code, name in packages.items() if importlib.util.find_spec(name) is not None]
    data = Path(os.environ.get("PKUSEG_HOME", "~/.pkuseg")).expanduser() / "spacy_ontonotes"
    words = [
        f"{code} (downloads its dictionary once)" if code == "zh" and not data.is_dir() else code
        for code in here
    ]
    absent = [f"{code} ({name})" for code, name in packages.items() if code not in here]
    found = f"libraries for {', '.join(words)}" if words else "no library"
    return f"{found}; none for {', '.join(absent)}: {REMEDY}" if absent else found


def caches(store: VoiceStore) -> dict[str, str]:
    """Number of files, size, place and free disk space of each cache."""
    weights = weight_cache.default().directory
    places = {
        "cache: voices": store.directory,
        "cache: converted weights": weights,
        "cache: CPU kernels": _kernels(),
        "cache: downloads": _downloads(),
    }
    return {name: _usage(place) for name, place in places.items()}


def _kernels() -> Path | str:
    try:
        from chatterbox_opt.kernels.cpu import compile_cache

        return compile_cache.directory() or "none (others can write to its directory)"
    except (ImportError, RuntimeError, OSError) as error:
        return f"none ({first_line(error)})"


def _downloads() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _usage(place: Path | str | None) -> str:
    if not isinstance(place, Path):
        return place or "off"
    sizes = []
    for directory, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):  # a file that has gone meanwhile
                status = os.lstat(os.path.join(directory, name))
                sizes += [status.st_size] if stat.S_ISREG(status.st_mode) else []
    used = size(sum(sizes))
    free = size(shutil.disk_usage(nearest_existing(place)).free)
    count = f"{len(sizes)} {'file' if len(sizes) == 1 else 'files'}"
    return f"{count}, {used} in {short_path(place)} ({free} free)"
