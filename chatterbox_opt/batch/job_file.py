"""Job files to ``Item``s: what is spoken, in which order, and where pauses are.

Responsible for the kinds of files, the known columns and their values. Not responsible for the
formats (readers/), engines, output files or whether a model can speak a text, which is an error of
its item only. An ambiguous file (an unknown column, a duplicate id, a seed that is not a number) is
an error before any work, with file and row.

Every word of a file is spoken, or counted in ``Job.dropped`` with the reason, or the file is
refused. A row without a letter or digit is a pause, as long as its markup says, if it has any.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from chatterbox_opt.audio.tags import Tags, one_line
from chatterbox_opt.batch.readers.captions import Captions
from chatterbox_opt.batch.readers.epub import read_epub
from chatterbox_opt.batch.readers.html import declared_encoding, read_html
from chatterbox_opt.batch.readers.markdown import read_markdown
from chatterbox_opt.batch.readers.prose import Split, read_prose
from chatterbox_opt.batch.readers.rows import SCENE_BREAK, Cells, Dropped, Parsed, Row
from chatterbox_opt.batch.readers.substation import read_substation
from chatterbox_opt.batch.readers.subtitles import read_subtitles
from chatterbox_opt.batch.readers.tables import read_csv, read_json_lines
from chatterbox_opt.batch.silences import edges, total
from chatterbox_opt.config.speaking_rate import check_rate
from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import WHOLE_NUMBERS, Sampling
from chatterbox_opt.script.cast import Cast
from chatterbox_opt.script.lexicon import Lexicon
from chatterbox_opt.script.reader import script_of
from chatterbox_opt.script.spans import Script
from chatterbox_opt.text.chunking import has_speech
from chatterbox_opt.text.decoding import decode
from chatterbox_opt.text.languages import check_language

STDIN = "-"
_HTML = (".html", ".htm", ".xhtml")
_TIMED_TEXT, _SUBSTATION = (".srt", ".vtt"), (".ass", ".ssa")
TEXTS, BOOKS, SUBTITLES = (".txt",), (".epub", *_HTML), (*_TIMED_TEXT, *_SUBSTATION)
FORMATS = (*TEXTS, ".md", *BOOKS, ".jsonl", ".csv", ".tsv", *SUBTITLES)
SAMPLING_COLUMNS = tuple(column.name for column in fields(Sampling))
COLUMNS = ("id", "text", "voice", *SAMPLING_COLUMNS, "language", "rate", "markup")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# "* * *", "---", "⁂": of several marks, or one that is used for nothing else
_SCENE_BREAK = re.compile(r"[*_#~=•·⁂❧☙◆◇✦✽-]{3,}|[⁂❧☙#*•~]|[—–]+")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read.

    Attributes:
        split: what an item of a .txt file is.
        captions: what is spoken of a subtitle file.
        encoding: of the file; None is UTF-8, or what the file declares.
        markup: of rows without their own.
        lexicon, cast: of all rows, see ``Request``.
        alt_texts: the alternative texts of pictures in .epub and .html are spoken.
    """

    split: Split = Split.AUTO
    captions: Captions = Captions.SPEECH
    encoding: str | None = None
    markup: bool = False
    lexicon: Lexicon | None = None
    cast: Cast | None = None
    alt_texts: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One text of a job, and where its audio goes.

    Attributes:
        id: from the row, or the item's number.
        row: line number in the file (cue number in subtitles), for messages.
        text: not yet cleaned.
        voice: a recording or a name; None is the model's own.
        sampling: the job's sampling parameters, overridden by the row's.
        starts_chapter: a chapter begins here, or a scene break is before it.
        chapter: title of the chapter that begins here, or "".
        pauses: number of rows without words between the item before and this one.
        silence: seconds that these rows ask for; None: they do not.
        silence_after: the same of the rows behind the last item; None for any other.
        has_own_id: the id is from the row.
        start, end: seconds, of a cue; None elsewhere.
        language: of the text, such as "de"; None: not known.
        rate: how fast it is spoken.
        markup, lexicon, cast: how its text is read, see ``Request``.
        file: name in the output directory; "" until runner.py assigns it.
        text_hash, settings_hash: what the manifest compares (see runner.py); "" until then.
    """

    id: str
    row: int
    text: str
    voice: str | None
    sampling: Sampling
    starts_chapter: bool = False
    pauses: int = 0
    silence: float | None = None
    silence_after: float | None = None
    has_own_id: bool = False
    start: float | None = None
    end: float | None = None
    language: str | None = None
    rate: float = 1.0
    markup: bool = False
    lexicon: Lexicon | None = None
    cast: Cast | None = None
    chapter: str = ""
    file: str = ""
    text_hash: str = ""
    settings_hash: str = ""
    _script: Script | None = field(default=None, init=False, repr=False, compare=False)

    def script(self) -> Script:
        """Its text in spans; read once.

        Raises:
            TextError: wrong markup, or names that are not in the cast.
        """
        if self._script is None:
            object.__setattr__(self, "_script", script_of(self))
        assert self._script is not None
        return self._script

    @property
    def written(self) -> str:
        """Its words as the person wrote them, without markup and names of speakers."""
        return self.script().written

    @property
    def edges(self) -> tuple[float | None, float | None]:
        """Seconds of silence that its text asks for before its first word and after its last; None:
        it does not. They are in its file."""
        return edges(self.script())


@dataclass(frozen=True, slots=True)
class Pause:
    """A row without words.

    Attributes:
        row, start, end: as of an ``Item``.
        id: from the row; None if it has none.
        text: of the row.
        reason: such as "scene break", "music" or "nothing to say".
        silence: seconds that its markup asks for; None: it does not.
    """

    row: int
    id: str | None
    text: str
    reason: str
    start: float | None = None
    end: float | None = None
    silence: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job file that was read.

    Attributes:
        lines: items and pauses in the file's order.
        dropped: texts that are not spoken.
        notes: how the file was read where there was a choice.
        tags: what the file says about itself; no chapters.
    """

    lines: list[Item | Pause]
    dropped: list[Dropped]
    notes: list[str]
    tags: Tags = field(default_factory=Tags)

    @property
    def items(self) -> list[Item]:
        """What is spoken."""
        return [line for line in self.lines if isinstance(line, Item)]

    @property
    def pauses(self) -> list[Pause]:
        """What is not."""
        return [line for line in self.lines if isinstance(line, Pause)]


def read(
    file: str,
    content: bytes,
    default: Sampling,
    voice: str | None = None,
    options: ReadOptions | None = None,
    language: str | None = None,
    rate: float = 1.0,
) -> Job:
    """Read a job file.

    Args:
        file: its name, whose extension is its format; ``-`` is read as a .txt.
        content: of the file.
        default: sampling parameters of rows without their own.
        voice, language, rate: of rows without their own.

    Raises:
        InputError: unknown format, another encoding, or a row that makes the file ambiguous.
    """
    options = options or ReadOptions()
    kind = ".txt" if file == STDIN else Path(file).suffix.lower()
    name = "standard input" if file == STDIN else f"'{file}'"
    if kind not in FORMATS:
        raise InputError(f"{name} has no known extension; give {', '.join(FORMATS)}, or -")
    parsed = _parse(kind, name, content, options)
    lines: list[Item | Pause] = []
    pauses: list[Pause] = []  # since the last item
    row_of_id: dict[str, int] = {}
    for row in parsed.rows:
        base = Item(
            *(str(len(row_of_id) + 1), row.number, "", voice, default, row.starts_chapter),
            language=language,
            rate=rate,
            markup=options.markup,
            lexicon=options.lexicon,
            cast=options.cast,
        )
        item = _item(f"{name} row {row.number}", row.cells, base)
        if reason := row.pause or _why_silent(item.written):
            pauses.append(_pause(item, row, reason))
            lines.append(pauses[-1])
            continue
        if item.id in row_of_id:
            raise InputError(
                f"{name} row {row.number}: id '{item.id}' is that of row {row_of_id[item.id]} too; "
                "give each row its own"
            )
        row_of_id[item.id] = row.number
        lines.append(_after(pauses, item, row))
        pauses = []
    if not row_of_id:
        raise InputError(f"{name} has no text to speak; give at least one line with a word")
    last = lines[-len(pauses) - 1]
    assert isinstance(last, Item)
    silence = total(pause.silence for pause in pauses)
    lines[-len(pauses) - 1] = replace(last, silence_after=silence)
    return Job(lines, parsed.dropped, parsed.notes, parsed.tags)


def _parse(kind: str, name: str, content: bytes, options: ReadOptions) -> Parsed:
    if kind == ".epub":
        return read_epub(name, content, options.encoding, alt_texts=options.alt_texts)
    declared = declared_encoding(content) if kind in _HTML else None
    text = decode(name, content, options.encoding or declared)
    if kind in _HTML:
        return read_html(text, alt_texts=options.alt_texts)
    if kind == ".md":
        return read_markdown(text)
    if kind == ".jsonl":
        return read_json_lines(name, text, COLUMNS)
    if kind in (".csv", ".tsv"):
        return read_csv(name, text, COLUMNS, tabs=kind == ".tsv")
    if kind in _TIMED_TEXT:
        is_web, markup = kind == ".vtt", options.markup
        return read_subtitles(name, text, options.captions, web=is_web, markup=markup)
    if kind in _SUBSTATION:
        return read_substation(name, text, options.captions, markup=options.markup)
    return read_prose(text, options.split, options.cast)


def _pause(item: Item, row: Row, reason: str) -> Pause:
    """A row without words; what is not read, such as code, asks for no silence."""
    silence = None if row.pause else edges(item.script())[0]
    own_id = item.id if item.has_own_id else None
    return Pause(row.number, own_id, item.text, reason, row.start, row.end, silence)


def _after(pauses: list[Pause], item: Item, row: Row) -> Item:
    """The item with what is between it and the one before, and with its chapter's title."""
    breaks = any(pause.reason == SCENE_BREAK for pause in pauses)
    is_heading = bool(row.chapter) and one_line(item.text) == one_line(row.chapter)
    return replace(
        item,
        starts_chapter=item.starts_chapter or breaks,
        pauses=len(pauses),
        silence=total(pause.silence for pause in pauses),
        start=row.start,
        end=row.end,
        chapter=one_line(item.written) if is_heading else row.chapter,  # without markup
    )


def _why_silent(text: str) -> str:
    """Why a text is a pause, or "" if it has something to say."""
    if has_speech(text):
        return ""
    marks = "".join(text.split())
    return SCENE_BREAK if _SCENE_BREAK.fullmatch(marks) else "nothing to say"


def _item(where: str, cells: Cells, base: Item) -> Item:
    """``base`` overridden by a row's cells; an empty cell is treated as absent."""
    cells = {column: cell for column, cell in cells.items() if cell not in (None, "")}
    text, id = cells.pop("text", ""), cells.pop("id", None)
    voice = cells.pop("voice", base.voice)
    if not isinstance(text, str):
        raise InputError(f"{where}: text is not a string; put it in quotes")
    if isinstance(id, bool) or not isinstance(id, (str, int, type(None))):
        raise InputError(f"{where}: id is not a string or whole number")
    if voice is not None and not isinstance(voice, str):
        raise InputError(f"{where}: voice is not a string; give a file or a name")
    try:
        language = check_language(cells.pop("language", base.language))
        rate = check_rate(_number("rate", cells.pop("rate", base.rate)))
        markup = _flag("markup", cells.pop("markup", base.markup))
        overrides = {column: _number(column, cell) for column, cell in cells.items()}
        sampling = replace(base.sampling, **overrides)
        named = replace(base, id=str(id), has_own_id=True) if id is not None else base
        item = replace(named, text=text, voice=voice, sampling=sampling, markup=markup)
        item = replace(item, language=language, rate=rate)
        item.script()  # its errors, with the row
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return item


def _flag(column: str, cell: Any) -> bool:
    flag = cell if isinstance(cell, bool) else _FLAGS.get(str(cell).strip().lower())
    if flag is None:
        raise InputError(f"{column} is {json.dumps(cell)[:40]}; give true or false")
    return flag


def _number(column: str, cell: Any) -> Any:
    kind: type[int] | type[float] = int if column in WHOLE_NUMBERS else float
    try:
        if isinstance(cell, bool) or (kind is int and isinstance(cell, float)):
            raise ValueError
        # a decimal comma, as in a table of a German or French Excel
        return kind(cell.replace(",", ".") if isinstance(cell, str) else cell)
    except (ValueError, TypeError, OverflowError) as error:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{column} is {json.dumps(cell)[:40]}; give {what}") from error
