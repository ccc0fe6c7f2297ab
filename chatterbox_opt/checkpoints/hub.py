"""Snapshots of Hugging Face hub repositories: download, the local cache, and what they must hold.

Responsible for revisions, sizes and digests of files. Not responsible for which models there are
(registry.py) or for what is in the files (loader.py); imports no torch, and huggingface_hub only
where it is used.

A repository's files can change under the same name. So a model is pinned: to a commit, and to the
size and the SHA-256 of each file at that commit, where they are known. Sizes are checked whenever a
snapshot is used, digests after a download. Another revision is used only if it is asked for, and is
then not checked.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from chatterbox_opt.errors import InputError, WeightsError
from chatterbox_opt.utils.steps import announce

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
MAIN = "main"  # the hub's default branch
_REVISION = re.compile(r"[\w.-]+(?:/[\w.-]+)*")  # also refs/pr/1


@dataclass(frozen=True, slots=True)
class Pin:
    """What a file must be.

    Attributes:
        size: in bytes, if known.
        sha256: of its content, in hexadecimal.
    """

    size: int | None
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a repository at a revision.

    Attributes:
        repository: "owner/name".
        revision: a commit, a branch or a tag.
        files: names of the files that are used.
        pins: by file name, as far as known; empty if the revision is not the pinned one.
        remedies: what to do where it is missing, in place of the usual.
    """

    repository: str
    revision: str
    files: tuple[str, ...]
    pins: Mapping[str, Pin] = field(default_factory=dict)
    remedies: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of all files, if known."""
        sizes = [self.pins[name].size if name in self.pins else None for name in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def only(self, names: Collection[str]) -> Snapshot:
        """Some of the files."""
        files = tuple(name for name in self.files if name in names)
        pins = {name: pin for name, pin in self.pins.items() if name in names}
        return dataclasses.replace(self, files=files, pins=pins)

    def at(self, revision: str) -> Snapshot:
        """The same files at another revision.

        Raises:
            InputError: no revision can have that name.
        """
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise InputError(f"revision {revision!r} is no commit, branch or tag")
        if revision == self.revision:
            return self
        return dataclasses.replace(self, revision=revision, pins={})


def in_cache(snapshot: Snapshot) -> Path | None:
    """Directory of a snapshot in the local cache if it is complete; uses no network."""
    from huggingface_hub import try_to_load_from_cache

    repository, revision = snapshot.repository, snapshot.revision
    paths = [try_to_load_from_cache(repository, n, revision=revision) for n in snapshot.files]
    cached = [path for path in paths if isinstance(path, str)]
    return Path(cached[0]).parent if len(cached) == len(snapshot.files) else None


def fetch(snapshot: Snapshot, files: Sequence[str] = ()) -> Path:
    """Directory of a snapshot, downloaded if it is not in the local cache.

    Args:
        files: of the whole model, if some are in another repository; for messages.

    Raises:
        WeightsError: not cached, and not reachable or not permitted; or a file is not the pinned
            one.
    """
    if cached := in_cache(snapshot):  # is used without asking the network
        _check_sizes(cached, snapshot)
        return cached
    directory = _download(snapshot, files or snapshot.files)
    announce("checking the downloaded files")
    with ExitStack() as unchecked:  # after a failure or a signal they count as absent
        for name in snapshot.pins:
            unchecked.callback((directory / name).unlink, missing_ok=True)
        _check_sizes(directory, snapshot)
        for name, pin in snapshot.pins.items():
            if (found := sha256(directory / name)) != pin.sha256:
                _refuse(directory / name, f"has the SHA-256 {found}, not {pin.sha256}")
        unchecked.pop_all()
    return directory


def _check_sizes(directory: Path, snapshot: Snapshot) -> None:
    for name, pin in snapshot.pins.items():
        size = (directory / name).stat().st_size
        if pin.size is not None and size != pin.size:
            _refuse(directory / name, f"has {size:,} bytes, not {pin.size:,}")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    digest, block = hashlib.sha256(), 1 << 20
    with path.open("rb") as file:
        while part := file.read(block):
            digest.update(part)
    return digest.hexdigest()


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE disables the network, parsed as huggingface_hub does."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _refuse(path: Path, reason: str) -> None:
    target = path.resolve()  # the cache's files are links
    raise WeightsError(
        f"'{path}' {reason}: it is damaged, or not what was released; delete '{target}' and run "
        "again"
    )


def _download(snapshot: Snapshot, files: Sequence[str]) -> Path:
    """Download what is not cached; return the snapshot's directory.

    huggingface_hub shows a progress bar per file and resumes interrupted downloads.
    """
    announce("")  # the hub's library shows bars of its own
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    # huggingface_hub uses requests, httpx or httpx2, depending on its version: take their errors
    # from the base classes of its own
    bases = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    failures: tuple[type[Exception], ...] = (OSError, *bases)
    repository, revision, paths = snapshot.repository, snapshot.revision, []
    try:
        for name in snapshot.files:
            paths.append(hf_hub_download(repository, name, revision=revision))
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"{repository} has no revision '{revision}'; without --revision the tested one is used"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "not here yet and the hub cannot be reached"
        raise WeightsError(_with_remedies(snapshot, files, reason)) from error
    except EntryNotFoundError as error:
        raise WeightsError(
            f"{repository} has no {name} at revision '{revision}'; without "
            "--revision the tested one is used"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        reason = f"not here yet and the hub answered {status}"
        raise WeightsError(_with_remedies(snapshot, files, reason)) from error
    except failures as error:
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            raise WeightsError(
                f"the weights of {repository} cannot be written to the hub's cache "
                f"({error.strerror}): free space there, or set HF_HOME to another "
                "directory"
            ) from error
        first = (str(error) or type(error).__name__).splitlines()[0]
        reason = f"not here yet and the download failed: {first}"
        raise WeightsError(_with_remedies(snapshot, files, reason)) from error
    return Path(paths[0]).parent


def _with_remedies(snapshot: Snapshot, files: Sequence[str], reason: str) -> str:
    offline = " (HF_HUB_OFFLINE is set)" if is_offline() else ""
    remedies = list(snapshot.remedies) or [
        "connect and run again, with HF_TOKEN or HF_ENDPOINT if your network needs them",
        f"--model DIR with a copy of {', '.join(files)}",
        "--model pico, the small built-in model",
    ]
    if snapshot.revision != MAIN and in_cache(snapshot.at(MAIN)):
        remedies.append(f"--revision {MAIN}, which is here from another download")
    ways = "; ".join(f"({number}) {remedy}" for number, remedy in enumerate(remedies, 1))
    return (
        f"the weights of {snapshot.repository} at {snapshot.revision[:12]} are {reason}{offline}. "
        f"Ways out: {ways}"
    )
