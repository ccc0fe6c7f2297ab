"""Finds the files of earlier runs that a job needs, and gives them their present names.

Responsible for what makes two items the same, which item an existing file belongs to, renaming, and
for refusing to replace files that are not ours. Not responsible for the manifest's format
(manifest.py) or for how it is noted which files are ours (journal.py).

An item is matched by its text and settings: by its id first, and if it has no id of its own (its id
is its number) by text and settings alone. So a line that is inserted at the top of a file moves all
numbers, and no audio has to be made again.

Renaming many files at once, some to names that others still have, must not mix them up when the
process is killed. It is done in two phases, all files to temporary names and from there to their
new ones, by a list on disk (``MOVES``) that says which phase is in progress; the next run finishes
it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from chatterbox_opt.batch import descriptions
from chatterbox_opt.batch import manifest as manifests
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.journal import OUTPUT
from chatterbox_opt.batch.manifest import MOVED, Entry, Manifest
from chatterbox_opt.errors import InputError, OutputError
from chatterbox_opt.script.cast import member_of
from chatterbox_opt.script.spans import Script
from chatterbox_opt.text.languages import AUTO
from chatterbox_opt.utils.atomic_file import atomic_write

MOVES = "manifest.moves"
FOREIGN_SHOWN = 3  # files of others that are named
_Content: TypeAlias = tuple[str, str, str]  # text and settings as hashes, and the extension
log = logging.getLogger(__name__)


@contextmanager
def open_directory(
    directory: Path, files: Iterable[str] | None, *, force: bool = False
) -> Iterator[Manifest]:
    """Lock an output directory and load its manifest (see ``open_manifest``).

    Args:
        files: names, or paths relative to the directory, of all that the run will write. None: any
            file may be replaced.
        force: discard the entries of earlier runs.

    Raises:
        InputError: one of the files is there and not of an earlier run; nothing was changed.
        OutputError: a run was killed while it renamed files, and they cannot be renamed.
    """
    files = () if files is None else list(files)
    if not os.path.lexists(directory / manifests.FILE):
        _check_files(directory, files)  # before there is a lock file in somebody's directory
    with manifests.open_manifest(directory) as manifest:
        _finish_moves(manifest)
        _check_files(directory, (file for file in files if not manifest.owns(file)))
        if force:
            manifest.forget()
        yield manifest


def _check_files(directory: Path, files: Iterable[str]) -> None:
    """Raise InputError if one of the files is there.

    What is outside of the directory is found even if the directory is not there yet.
    """
    base = os.path.realpath(directory)
    found = [
        os.path.normpath(directory / file)
        for file in files
        if os.path.lexists(os.path.normpath(os.path.join(base, file)))
    ]
    if found:
        named = "', '".join(found[:FOREIGN_SHOWN])
        pronoun = "them" if len(found) > 1 else "it"
        more = f" and {len(found) - FOREIGN_SHOWN} more" if len(found) > FOREIGN_SHOWN else ""
        raise InputError(
            f"'{named}'{more} would be replaced, and no earlier run in '{directory}' wrote "
            f"{pronoun}: give another --out-dir or --join, or allow it with --overwrite"
        )


def prepare(
    items: Iterable[Item],
    files: Iterable[str],
    model_key: str,
    voice_key: Callable[[str | None], str],
    loudness: float | None = None,
    stretch: float | None = None,
) -> list[Item]:
    """The items with their output file and the hashes that decide whether they are up to date.

    Args:
        files: output file of each item.
        model_key: model, precision, and everything else that changes the audio.
        voice_key: hash of a voice's content, so that a changed recording is detected.
        loudness: LUFS that the files are brought to.
        stretch: by which speech that is too long for its cue is faster; None: it is not.
    """
    keys_of = functools.cache(voice_key)
    prepared = []
    for item, file in zip(items, files, strict=True):
        # the keys and their order are those of manifests on disk: they must not change
        settings: dict[str, Any] = {"by": model_key, "voice": keys_of(item.voice)}
        settings |= dataclasses.asdict(item.sampling)
        if loudness is not None:
            settings["loudness"] = loudness
        if item.language is not None:
            settings["language"] = item.language
        if item.rate != 1:
            settings["rate"] = item.rate
        if script := _script(item, keys_of):
            settings["script"] = script
        if stretch is not None and item.start is not None and item.end is not None:
            settings |= {"cue": round(item.end - item.start, 3), "stretch": stretch}
        text_hash, settings_hash = _hash(item.text), _hash(json.dumps(settings, sort_keys=True))
        prepared.append(
            dataclasses.replace(item, file=file, text_hash=text_hash, settings_hash=settings_hash)
        )
    return prepared


def _script(item: Item, voice_key: Callable[[str | None], str]) -> list[Any]:
    """What markup, lexicon and cast make of an item's text; empty for one that they leave as it is.

    So a changed lexicon or cast concerns only the items in which it changes something.
    """
    spans = item.script().spans
    made: list[Any] = []
    if item.lexicon is not None and item.language == AUTO:  # which of its words count is not known
        made += [dataclasses.astuple(entry) for entry in item.lexicon.entries]
    elif spans == Script.of(item.text).spans:
        return []
    for span in spans:
        member = member_of(item.cast, span.voice)
        voice = voice_key(member.voice) if isinstance(member.voice, str) else None
        made.append([span.text, voice, member.sampling, member.rate, span.rate, span.pause])
    return made


def _hash(text: str) -> str:
    content = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class _Move:
    """A file of an earlier run, and the item that it belongs to now."""

    entry: Entry
    id: str
    file: str

    @property
    def renames(self) -> bool:
        """Whether the file has another name."""
        return self.entry.file != self.file


def find_done(
    manifest: Manifest, items: Sequence[Item], *, timestamps: bool = False
) -> dict[str, Entry]:
    """Entries, by id, of the items whose audio is there; afterwards it has the items' file names.

    Args:
        timestamps: only of those whose words' times are there too.

    Raises:
        OutputError: a file cannot be renamed.
    """
    _finish_moves(manifest)
    finished = manifest.finished()
    by_content: dict[_Content, deque[Entry]] = defaultdict(deque)
    by_id: dict[tuple[str, _Content], list[Entry]] = defaultdict(list)
    for entry in finished:
        if timestamps and not entry.words:
            continue  # its file stays, and is spared as those of other items are
        by_content[_content(entry)].append(entry)
        by_id[entry.id, _content(entry)].append(entry)
    moves: dict[str, _Move] = {}
    claimed: set[str] = set()  # files
    for item in items:  # by id, before any is taken for its content
        if entries := by_id.get((item.id, _content(item))):
            entry = min(entries, key=lambda entry: entry.file != item.file)
            moves[item.id] = _Move(entry, item.id, item.file)
            claimed.add(entry.file)
    for item in items:
        if item.id in moves or item.has_own_id:
            continue
        waiting = by_content[_content(item)]
        while waiting and waiting[0].file in claimed:
            waiting.popleft()
        if waiting:
            moves[item.id] = _Move(waiting.popleft(), item.id, item.file)
            claimed.add(moves[item.id].entry.file)
    renames = [move for move in moves.values() if move.renames]
    _move(manifest, [*_spared(finished, renames, claimed), *renames])
    return {id: manifest.entries[id] if move.renames else move.entry for id, move in moves.items()}


def _content(of: Item | Entry) -> _Content:
    return of.text_hash, of.settings_hash, PurePath(of.file).suffix


def _spared(
    finished: Iterable[Entry], moves: Sequence[_Move], claimed: Collection[str]
) -> list[_Move]:
    """New names for files that no item has now, and whose names another item's file gets.

    They stay, are listed as files of earlier runs, and are found if their text comes back.
    """
    targets = {move.file for move in moves}
    spared = []
    for entry in finished:
        if entry.file in targets and entry.file not in claimed:
            name = PurePath(entry.file)
            mark = f"~{entry.text_hash[:8]}"
            kept = f"{name.stem}{mark}{name.suffix}"
            spared.append(_Move(entry, f"{entry.id}{mark}", kept))
    return spared


def stale_files(manifest: Manifest, items: Iterable[Item]) -> list[str]:
    """Files of earlier runs that the job has no use for, sorted; captions of such files too."""
    files = {item.file for item in items}
    captions = descriptions.stale_captions(manifest.journal, files)
    return sorted({*manifest.present(), *captions} - files)


def _move(manifest: Manifest, moves: Sequence[_Move]) -> None:
    """Rename files with their captions, and note it in the manifest."""
    if not moves:
        return
    captions = _captions(manifest, moves)
    descriptions.remove_metadata(manifest.directory, manifest.journal)
    moved = [dataclasses.replace(m.entry, id=m.id, file=m.file) for m in moves]
    # the names that are free now must not pass for the files that had them
    freed = [dataclasses.replace(m.entry, status=MOVED) for m in moves]
    plan = {
        "phase": 1,
        "names": [[m.entry.file, f".moving-{i}", m.file] for i, m in enumerate(moves)] + captions,
        "captions": [[old, new] for old, _, new in captions],
        "entries": [dataclasses.asdict(entry) for entry in [*freed, *moved]],
    }
    _write(manifest.directory / MOVES, plan)
    _finish_moves(manifest)
    log.info("%d files of an earlier run have new names", len(moves))


def _captions(manifest: Manifest, moves: Sequence[_Move]) -> list[list[str]]:
    """Old, temporary and new names of the captions of files that move.

    Those of other audio that has a new name's place are deleted, as are those whose new name a file
    of the user has.
    """
    names, journal = [], manifest.journal
    for number, move in enumerate(moves):
        for old in descriptions.captions_of(journal, move.entry.file):
            suffix = PurePath(old).suffix
            new = str(PurePath(move.file).with_suffix(suffix))
            names.append([old, f".moving-{number}{suffix}", new])
    leaving = {old for old, _, _ in names}
    for move in moves:
        outdated = set(descriptions.captions_of(journal, move.file)) - leaving
        descriptions.remove(manifest.directory, journal, outdated)
    taken = [old for old, _, new in names if _is_taken(manifest, new)]
    descriptions.remove(manifest.directory, journal, taken)
    return [triple for triple in names if triple[0] not in taken]


def _is_taken(manifest: Manifest, file: str) -> bool:
    return os.path.lexists(manifest.directory / file) and not manifest.owns(file)


def _finish_moves(manifest: Manifest) -> None:
    """Do what is left of a list of renames, if there is one."""
    path = manifest.directory / MOVES
    if not path.exists():
        return
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["phase"] == 1:
            _rename(manifest.directory, [(old, part) for old, part, _ in plan["names"]])
            _write(path, plan | {"phase": 2})
        _rename(manifest.directory, [(part, new) for _, part, new in plan["names"]])
        captions = plan.get("captions", [])  # an earlier version left them where they were
        manifest.journal.drop(old for old, _ in captions)
        for _, new in captions:
            manifest.start(new, OUTPUT)
        manifest.append(*(Entry(**cells) for cells in plan["entries"]))
        path.unlink()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"files could not be renamed as '{path}' says ({error}): mend that, or delete it and "
            "run with --force"
        ) from error


def _rename(directory: Path, names: Iterable[tuple[str, str]]) -> None:
    for old, new in names:
        if (directory / old).exists():  # else it was done before the process was killed
            os.replace(directory / old, directory / new)


def _write(path: Path, plan: dict[str, object]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(plan), encoding="utf-8")
