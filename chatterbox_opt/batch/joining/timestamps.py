"""Caption files of a batch: one next to each audio file, and one next to the joined file.

Responsible for their names and for which words are in them. Not responsible for their formats
(words/caption_files.py) or for the words' times, which are in the manifest: so the files can be
written without synthesizing anything again, in another format too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chatterbox_opt.batch.descriptions import CaptionFormat, caption_name
from chatterbox_opt.batch.job_file import Item
from chatterbox_opt.batch.joining.join import Joined
from chatterbox_opt.batch.journal import OUTPUT
from chatterbox_opt.batch.manifest import Entry, Manifest
from chatterbox_opt.words.caption_files import write_captions
from chatterbox_opt.words.word import Word


def write_item_captions(manifest: Manifest, entries: Iterable[Entry], form: CaptionFormat) -> int:
    """Write a file for each entry that is done; return their number.

    Raises:
        OSError, OutputError: one cannot be written.
    """
    written = 0
    for entry in entries:
        name = caption_name(entry.file, form)
        manifest.start(name, OUTPUT)
        words = [Word(*word) for word in entry.words]
        write_captions(str(manifest.directory / name), words, entry.language, sweep=False)
        written += 1
    return written


def write_joined_captions(
    target: str, items: Iterable[Item], entries: Mapping[str, Entry], joined: Joined
) -> None:
    """Write the captions of the joined file. Raises as ``write_captions``."""
    found = [entries[item.id] for item in items]
    languages = {entry.language for entry in found}
    words = list(_joined_words(found, joined))
    write_captions(target, words, languages.pop() if len(languages) == 1 else None)


def _joined_words(entries: Iterable[Entry], joined: Joined) -> Iterable[Word]:
    """The words of all entries; chunks are counted on."""
    chunks = 0
    for entry, start in zip(entries, joined.starts, strict=True):
        words = [Word(*word).later(start) for word in entry.words]
        for word in words:
            # a word at an end of the file may have been cut off as silence
            begin, end = (min(max(time, 0.0), joined.seconds) for time in (word.start, word.end))
            yield Word(word.text, begin, end, chunks + word.chunk)
        chunks += 1 + max((word.chunk for word in words), default=0)
