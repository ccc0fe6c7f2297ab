"""What ``batch`` writes besides the audio of its items: metadata, captions, the joined file.

Responsible for the names of all files, for their order, and for what is printed about them. Not
responsible for their content (batch/).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from chatterbox_opt.audio import files as audio_files
from chatterbox_opt.audio.tags import Tags
from chatterbox_opt.batch import filenames, job_file
from chatterbox_opt.batch.descriptions import METADATA, CaptionFormat, caption_name
from chatterbox_opt.batch.joining import timeline
from chatterbox_opt.batch.joining.join import Joined, join
from chatterbox_opt.batch.joining.timestamps import write_item_captions, write_joined_captions
from chatterbox_opt.batch.journal import FILE as JOURNAL_FILE
from chatterbox_opt.batch.journal import OUTPUT
from chatterbox_opt.batch.manifest import DONE, LOCK, Entry, Manifest
from chatterbox_opt.batch.manifest import FILE as MANIFEST_FILE
from chatterbox_opt.batch.metadata import Metadata, write_metadata
from chatterbox_opt.batch.resuming import MOVES
from chatterbox_opt.batch.runner import Summary
from chatterbox_opt.cli.batch import dubbing
from chatterbox_opt.cli.batch.options import FileOptions, JoinOptions
from chatterbox_opt.cli.batch.progress import report_joined
from chatterbox_opt.cli.terminal import streams
from chatterbox_opt.cli.terminal.console import Reporter
from chatterbox_opt.errors import OutputError
from chatterbox_opt.utils.paths import nearest_existing

OWN_FILES = (MANIFEST_FILE, LOCK, JOURNAL_FILE, MOVES)


def other_files(files: FileOptions, joining: JoinOptions, names: list[str]) -> Iterator[str]:
    """What is written besides the items' files, relative to the output directory."""
    if files.metadata is not None:
        yield METADATA
    yield from _joined_name(joining.joined_file, files.directory)
    if files.timestamps is not None:
        yield from (caption_name(name, files.timestamps) for name in names)
    if joining.joined_file is not None and (form := _joined_captions(files, joining)) is not None:
        # next to a symbolic link, not to what it points to
        yield from _joined_name(caption_name(joining.joined_file, form), files.directory)


def paths(files: FileOptions, joining: JoinOptions, names: list[str]) -> list[str]:
    """All files that are written, those that tell of earlier runs included.

    The directory need not be there: what is outside of it is found all the same.
    """
    directory = os.path.realpath(files.directory)
    written = [*names, *other_files(files, joining, names), *OWN_FILES]
    return [os.path.normpath(os.path.join(directory, name)) for name in written]


def _joined_captions(files: FileOptions, joining: JoinOptions) -> CaptionFormat | None:
    """The format of the joined file's captions; None without them: a film has its own cues."""
    return None if joining.timed else files.timestamps


def _joined_name(path: str | None, directory: Path) -> list[str]:
    """The joined file relative to the output directory, after symbolic links; absolute if it is on
    another drive. None for a stream, or without a joined file."""
    if path is None or audio_files.is_stream(path):
        return []
    target = os.path.realpath(path)
    try:
        return [os.path.relpath(target, os.path.realpath(directory))]
    except ValueError:
        return [target]


def check_joined(path: str, directory: Path, *, as_json: bool) -> None:
    """Check that the joined file can be written, before there is an output directory.

    Args:
        directory: the output directory; what is missing of it, and within it, is made later.
        as_json: events are printed too.

    Raises:
        InputError: it cannot.
    """
    streams.check_stdout(path, "--join", as_json=as_json)
    if audio_files.is_stream(path) or not _is_made(audio_files.link_target(path).parent, directory):
        audio_files.check_writable(path)


def _is_made(parent: Path, directory: Path) -> bool:
    """Whether a directory that is missing is the output directory, or can be made within it."""
    target = Path(os.path.realpath(parent))
    if target.exists() or not target.is_relative_to(os.path.realpath(directory)):
        return False
    return nearest_existing(target).is_dir()


def names_of(items: list[job_file.Item], files: FileOptions, joined_file: str | None) -> list[str]:
    """The file name of each item; the names of other files in --out-dir are reserved."""
    rows = ((item.id, item.written) for item in items)
    reserved = _joined_name(joined_file, files.directory)
    if files.timestamps is not None:  # captions of two audio files must not have one name
        reserved += [str(Path(name).with_suffix(f".{files.format}")) for name in reserved]
    return filenames.names(rows, files.name, f".{files.format}", reserved)


def done_entries(items: list[job_file.Item], summary: Summary) -> list[Entry]:
    """The entries of the items that are done, in the job's order; none of those not reached."""
    entries = (summary.entries.get(item.id) for item in items)
    return [entry for entry in entries if entry is not None and entry.status == DONE]


def _make_parent(path: str) -> None:
    """Make the directory of a joined file that is within the output directory."""
    if audio_files.is_stream(path):
        return
    parent = audio_files.link_target(path).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{parent}' cannot be made ({error.strerror}): --join another file"
        ) from error


def write_metadata_file(
    reporter: Reporter, manifest: Manifest, form: Metadata | None, done: list[Entry]
) -> None:
    """Write metadata.csv, if it is asked for."""
    if form is None:
        return
    manifest.start(METADATA, OUTPUT)
    reporter.status(f"metadata: {write_metadata(manifest.directory, done, form)}")


def write_captions(
    reporter: Reporter, manifest: Manifest, form: CaptionFormat | None, done: list[Entry]
) -> None:
    """Write a caption file for each item, if it is asked for."""
    if form is not None:
        count = write_item_captions(manifest, done, form)
        reporter.status(f"captions: {count} .{form.value} files")


def write_joined(
    reporter: Reporter,
    manifest: Manifest,
    files: FileOptions,
    joining: JoinOptions,
    job: job_file.Job,
    tags: Tags,
    items: list[job_file.Item],
    summary: Summary,
    *,
    as_json: bool,
) -> None:
    """Write the joined file and its captions, if no item is missing."""
    target = joining.joined_file
    if target is None:
        return
    if missing := len(items) - (len(summary.entries) - len(summary.failed())):
        raise OutputError(f"'{target}' is not written, {missing} items are missing: run again")
    _make_parent(target)
    captions = _joined_captions(files, joining)
    targets = [target] if captions is None else [target, caption_name(target, captions)]
    for name in (name for path in targets for name in _joined_name(path, manifest.directory)):
        manifest.start(name, OUTPUT)
    made = (items, summary.entries, manifest.directory, target)
    if (timing := joining.timing()) is not None:
        fits, seconds = timeline.dub(*made, timing, timeline.film_seconds(job), tags)
        dubbing.report(reporter, fits, as_json=as_json)
        report_joined(reporter, Joined(seconds), target)
        return
    joined = join(*made, joining.pauses(), tags, joining.master)
    report_joined(reporter, joined, target)
    if captions is not None:
        write_joined_captions(targets[1], items, summary.entries, joined)
        reporter.status(f"captions: {targets[1]}")
