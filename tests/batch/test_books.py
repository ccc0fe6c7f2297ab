"""From a book to one file with chapters: reading .epub and .html, joining, mastering."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import books
from helpers.books import PNG, archive, epub, package, repacked
from helpers.common import ROOT
from helpers.fake_engine import FakeEngine, run_batch
from helpers.fuzz import soon
from helpers.joined_books import speak

from chatterbox_opt import Result, Sampling
from chatterbox_opt.audio import containers, loudness
from chatterbox_opt.audio.tags import Tags
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.job_file import Item, Job, Pause, ReadOptions
from chatterbox_opt.batch.joining import mastering
from chatterbox_opt.batch.joining.join import OPENING, Pauses, chapters, join
from chatterbox_opt.batch.joining.mastering import Master
from chatterbox_opt.batch.readers import archive as archives
from chatterbox_opt.batch.readers import html
from chatterbox_opt.batch.readers.rows import words_by_reason
from chatterbox_opt.batch.resuming import prepare
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Piece


def read(file: str, content: str | bytes, **options) -> Job:
    raw = content.encode() if isinstance(content, str) else content
    return job_file.read(file, raw, Sampling(seed=1), options=ReadOptions(**options))


def lines(job: Job) -> list[str]:
    return [f"({x.reason})" if isinstance(x, Pause) else x.text for x in job.lines]


def titles(job: Job) -> list[str]:
    return [item.chapter for item in job.items if item.chapter]


# --- HTML -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<p>One<p>two <b>th</b>ree<br>four", ["One", "two three four"]),
        ("loose <div>in <p>par</p> tail</div> end", ["loose", "in", "par", "tail", "end"]),
        ("<p>a&nbsp;b &amp; c &#8217; so&shy;ft", ["a b & c ’ soft"]),
        ("<p>x<hr/>y<script>no()</script><style>p{}</style>", ["x", "(scene break)", "y"]),
        ("<p>* * *</p><p>x", ["(scene break)", "x"]),
        ("<ol start='3'><li>c<li><p>d</p><ul><li>in</ul></ol>", ["3. c", "4. d", "in"]),
        ("<li>alone<li>two", ["alone", "two"]),
        ("<pre>a poem\nof lines</pre><pre><code>x = 1</code></pre>", ["a poem of lines", "(code block)"]),
        ("<table><tr><th>Name<th>Age<tr><td>Ada<td><p>36</p><tr><td>Bob<td></table>",
         ["Name: Ada, Age: 36.", "Name: Bob."]),
        ("<table><caption>Pets</caption><tr><td>a<td><table><tr><td>b<td>c</table></table>",
         ["Pets", "a, b c"]),
        ("<table><tr><th>only<th>names</table>", ["only, names"]),
        ("<table><tr><th>Year<th>Name</tr><tr><td rowspan=2>2020<td>Ada</tr><tr><td>Bob</tr><tr><td>2021<td>Cy</table>",
         ["Year: 2020, Name: Ada.", "Name: Bob.", "Year: 2021, Name: Cy."]),
        ("<table><tr><th colspan=2>Name<th>Age<tr><td>Ada<td>Byron<td>36</table>",
         ["Name: Ada, Byron, Age: 36."]),
        ("<table><tr><th>A<th>B<th>C<tr><td colspan=2>x<td>y<tr><td>1<td rowspan=0 colspan=2>2<tr><td>3</table>",
         ["A: x, C: y.", "A: 1, B: 2.", "A: 3."]),
        ("<table><thead><tr><th rowspan=9>A<th>B</thead><tbody><tr><td>x<td>y</table>", ["A: x, B: y."]),
        ("<table><tr><th>A<th>B<tr><td rowspan=x colspan=-3>x<td>y</table>", ["A: x, B: y."]),
        ("<ol><li value='9'>nine<li>ten<li value='x'>eleven</ol>", ["9. nine", "10. ten", "11. eleven"]),
        ("<p>Water is H<sub>2</sub>O.", ["Water is H2O."]),
        ("<p><![CDATA[text]]> x", ["text x"]),
        ("<!DOCTYPE html [<!ENTITY a 'b'>]><p>&a;c", ["&a;c"]),
        ("<q>un<closed", ["un"]),
    ],
)  # fmt: skip
def test_html_is_read_as_a_person_would(content, expected):
    assert lines(read("a.html", content)) == expected


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        ("<p>x<sup><a href='#n1'>1</a></sup> y", "footnote marks", 1),
        ("<p>x<a href='n.xhtml#n1'><sup>12</sup></a> y", "footnote marks", 1),
        ("<p>x<a href='#n1'>[3]</a> y", "footnote marks", 1),
        ("<p>x<a epub:type='noteref' href='n'>see</a> y", "footnote marks", 1),
        ("<p>x<a role='doc-noteref' href='n'>*9</a> y", "footnote marks", 1),
        ("<p>x<aside epub:type='footnote'><p>A note.</p></aside> y", "footnotes", 2),
        ("<p>x<span epub:type='pagebreak' title='3'>3</span> y", "page numbers", 1),
        ("<p>x <img src='a' alt='A map'> y", "texts of pictures", 2),
        ("<p>x<svg><text>in a drawing</text></svg> y", "drawings, formulas and controls", 3),
        ("<p>x y<nav><a>one</a> <a>two</a></nav>", "navigation", 2),
        ("<p>x <span hidden>no</span><i style='display: none'>no</i> y", "hidden parts", 2),
        ("<p>x <ruby>y<rt>why</rt></ruby>", "readings above characters", 1),
        ("<p>x y<section epub:type='toc'><p>One<p>Two</section>", "tables of contents", 2),
    ],
)
def test_what_is_not_read_is_counted(content, reason, words):
    job = read("a.html", content)
    assert " ".join(lines(job)).split() == ["x", "y"]
    assert words_by_reason(job.dropped) == {reason: words}


def test_links_that_are_no_marks_of_footnotes_are_read():
    for content in ("<p>See <a href='#c1'>1</a>.", "<p>See <a href='x.html'>[1]</a>.",
                    "<p>10<sup>2</sup>", "<p><a href='#a'>chapter one</a>"):  # fmt: skip
        assert not read("a.html", content).dropped


def test_alternative_texts_are_read_if_asked_for_and_in_headings():
    content = "<p>x <img alt='A map'/> y</p><h1><img alt='Chapter Two'/></h1>"
    assert lines(read("a.html", content)) == ["x y", "Chapter Two"]
    assert lines(read("a.html", content, alt_texts=True)) == ["x A map y", "Chapter Two"]


def test_headings_are_chapters():
    job = read("a.html", "<title>My\nBook</title><meta name=author content='Ann'><h1>Chapter 1<br/>The Boy</h1>x<h2>Two:<br>b</h2>y")  # fmt: skip
    assert titles(job) == ["Chapter 1, The Boy", "Two: b"]
    assert [item.starts_chapter for item in job.items] == [True, False, True, False]
    assert job.tags == Tags("My Book", "Ann")
    assert titles(read("a.md", "# One\n\nx\n\n## *Two*\n\ny")) == ["One", "Two"]
    assert titles(read("a.txt", "Chapter 1\nx x.\n\nChapter 2\ny y.")) == ["Chapter 1", "Chapter 2"]
    assert titles(read("a.txt", "x\n\n\ny")) == []


def test_the_declared_encoding_is_used():
    text = "<?xml version='1.0' encoding='{}'?><p>Ä “x”"
    for name, codec in (("iso-8859-1", "cp1252"), ("windows-1252", "cp1252"), ("UTF-8", "utf-8"),
                        ("Shift_JIS", "shift_jis"), ("no-such", "utf-8"), ("hex", "utf-8")):  # fmt: skip
        content = text.format(name).replace("Ä “x”", "あ" if codec == "shift_jis" else "Ä “x”")
        [item] = read("a.xhtml", content.encode(codec)).items
        assert item.text in ("Ä “x”", "あ")
    [item] = read("a.html", "<meta charset=koi8-r><p>да".encode("koi8-r")).items
    assert item.text == "да"
    assert html.declared_encoding("\ufeff<meta charset=koi8-r>".encode()) is None
    [item] = read("a.html", "<meta charset=koi8-r><p>да".encode(), encoding="utf-8").items
    assert item.text == "да"
    with pytest.raises(InputError, match="is not UTF-8"):
        read("a.html", "<p>Ä".encode("latin-1"))


LONG = {
    "div": "<div>" * 100_000 + "x",
    "footnote": "<a href='#x'><p>" * 30_000 + "x",
    "table": "<table><tr><td>" * 20_000 + "x",
    "spans": "<table>" + "<tr><td colspan=99999 rowspan=99999>x" * 20_000,
    "tall cells": "<table>" + "<td rowspan=99999>x" * 20_000 + "<tr><td>x" * 20_000,
    "heading": "<h1>x" + "<br>" * 100_000,
    "DTD": "<!DOCTYPE[" * 100_000 + "x",
    "less": "<" * 300_000 + "x",
    "ampersand": "&" * 300_000 + "x",
    "code": "<pre>" + "<code>" * 50_000 + "</code>" * 50_000 + "x",
    "superscript": "<sup>" * 100_000 + "x",
}


@pytest.mark.parametrize("content", LONG.values(), ids=LONG)
def test_no_document_takes_long(content):
    with soon():
        assert read("a.html", content + " <p>x").items


# --- EPUB -------------------------------------------------------------------------------------

BOOK = epub(
    ["<h1>Chapter 1</h1><p>One one.</p><script src='x'/><p>It goes on.</p>",
     "<h1>Chapter 2</h1><h2>The Name</h2><p>Two<a epub:type='noteref' href='#n'>1</a> two.</p>",
     "<h1>Chapter 3</h1><p>Three.</p><hr/><p>The end.</p>"],
)  # fmt: skip


def test_a_book_is_read_in_the_order_of_its_spine():
    job = read("book.epub", BOOK)
    assert lines(job) == [
        "Chapter 1", "One one.", "It goes on.", "Chapter 2", "The Name", "Two two.", "Chapter 3",
        "Three.", "(scene break)", "The end.",
    ]  # fmt: skip
    assert titles(job) == ["Chapter 1", "Chapter 2", "The Name", "Chapter 3"]
    assert job.tags == Tags("A Book", "Ann Author", PNG)
    assert words_by_reason(job.dropped) == {"footnote marks": 1}
    assert "'A Book' by Ann Author, with a cover" in job.notes


NAV = """<nav epub:type="toc"><ol><li><a href="part%200.xhtml">Dedication</a></li>
<li><a href="http://elsewhere/">Shop</a></li><li><a href="part%201.xhtml#a">Not this</a></li></ol></nav>"""
NCX = """<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://x/ncx.dtd">
<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint id="a"><navLabel><text>Dedication</text></navLabel>
<content src="part%200.xhtml"/><navPoint><navLabel><text>Not this</text></navLabel><content src="part%201.xhtml"/>
</navPoint></navPoint></navMap></ncx>"""


@pytest.mark.parametrize(
    ("item", "content"),
    [
        ('<item id="t" href="t" media-type="application/xhtml+xml" properties="nav"/>', NAV),
        ('<item id="t" href="t" media-type="application/x-dtbncx+xml"/>', NCX),
    ],
)
def test_a_document_without_a_heading_has_the_title_of_the_table_of_contents(item, content):
    bodies = ["<hr/><p>*</p><p>To you.</p>", "<h1>Chapter 1</h1><p>x</p>"]
    files = {f"OEBPS/part {i}.xhtml": books.DOCUMENT.format(body) for i, body in enumerate(bodies)}
    files |= {"OEBPS/content.opf": package(["part%200.xhtml", "part%201.xhtml"], more=item)}
    job = read("a.epub", archive(files | {"OEBPS/t": content}))
    assert titles(job) == ["Dedication", "Chapter 1"]
    assert job.items[0].chapter and job.items[0].text == "To you."
    assert titles(read("a.epub", archive(files))) == ["Chapter 1"], "no table of contents"


def test_the_encoding_that_is_given_holds_for_the_table_of_contents_too():
    nav = NAV.replace("Dedication", "Für dich").encode("latin-1")
    item = '<item id="t" href="t" media-type="application/xhtml+xml" properties="nav"/>'
    opf = package(["part%200.xhtml"], more=item)
    part = "<p>Nochmals: für dich.".encode("latin-1")
    book = archive({"OEBPS/content.opf": opf, "OEBPS/part 0.xhtml": part, "OEBPS/t": nav})
    job = read("a.epub", book, encoding="latin-1")
    assert titles(job) == ["Für dich"]


def test_what_is_not_in_the_reading_order_is_counted():
    names = ["a", "b", "c"]
    opf = package(names).replace('idref="d1"', 'idref="d1" linear="no"')
    opf = opf.replace('id="d2"', 'id="d2" properties="nav"')
    files = {f"OEBPS/{name}": f"<p>In {name}." for name in names} | {"OEBPS/content.opf": opf}
    job = read("a.epub", archive(files))
    assert lines(job) == ["In a."]
    assert words_by_reason(job.dropped) == {
        "documents outside the reading order": 2,
        "tables of contents": 2,
    }


def test_covers_of_epub_2_and_of_other_kinds():
    meta = '<meta name="cover" content="c"/></metadata>'
    old = package(["a"], more='<item id="c" href="c.jpg" media-type="image/jpeg"/>')
    files = {"OEBPS/a": "<p>x", "OEBPS/content.opf": old.replace("</metadata>", meta)}
    assert read("a.epub", archive(files)).tags.cover == b""  # it is not there
    jpeg = b"\xff\xd8\xff\xe0 and so on"
    assert read("a.epub", archive(files | {"OEBPS/c.jpg": jpeg})).tags.cover == jpeg
    assert read("a.epub", archive(files | {"OEBPS/c.jpg": b"GIF89a"})).tags.cover == b""


def with_file(name: str, content: str | bytes) -> bytes:
    memory = io.BytesIO(repacked(BOOK, name))
    with zipfile.ZipFile(memory, "a", zipfile.ZIP_DEFLATED) as book:
        book.writestr(name, content)
    return memory.getvalue()


def encrypted(flags: int) -> bytes:
    """The flags of every entry, in its header and in the central directory."""
    content = bytearray(BOOK)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset] |= flags
            at = content.find(mark, at + 1)
    return bytes(content)


BOMB = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><package>&b;</package>'
DRM = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><e:EncryptedData xmlns:e="http://www.w3.org/2001/04/xmlenc#">
<e:EncryptionMethod Algorithm="{}"/><e:CipherData><e:CipherReference URI="OEBPS/part 0.xhtml"/></e:CipherData></e:EncryptedData></encryption>"""
FONTS = "http://www.idpf.org/2008/embedding"
OPF, CONTAINER, PART = "OEBPS/content.opf", "META-INF/container.xml", "OEBPS/part 1.xhtml"


def large() -> bytes:
    return with_file(PART, "<p>" + "a" * archives.MAX_DOCUMENT)


def damaged_crc() -> bytes:
    """A checksum of the last document that is not that of its content."""
    content = bytearray(BOOK)
    at = content.find(b"OEBPS/part 2.xhtml") - 30
    assert content[at : at + 4] == b"PK\x03\x04"
    directory = content.rfind(b"OEBPS/part 2.xhtml") - 46
    content[directory + 16] ^= 0xFF
    return bytes(content)


BROKEN = {
    "empty": (b"", "is no EPUB, or is damaged"),
    "a mark only": (b"PK\x03\x04 and no more", "is no EPUB, or is damaged"),
    "cut off": (BOOK[: len(BOOK) // 2], "is no EPUB, or is damaged"),
    "no container": (repacked(BOOK, CONTAINER), "has no 'META-INF/container.xml' in it"),
    "no package": (repacked(BOOK, OPF), "has no 'OEBPS/content.opf' in it"),
    "no document": (repacked(BOOK, PART), "has no 'OEBPS/part 1.xhtml' in it"),
    "an empty container": (with_file(CONTAINER, "<container/>"), "names no package document"),
    "an open tag": (with_file(OPF, "<package><spine>"), "is damaged at 'OEBPS/content.opf'"),
    "an empty spine": (with_file(OPF, "<package/>"), "has 0 documents in its reading order"),
    "an unknown document": (with_file(OPF, package(["a"]).replace('idref="d0"', 'idref="x"')), "lists 'x' in its reading order and nowhere"),
    "entities": (with_file(OPF, BOMB), "declares entities in 'OEBPS/content.opf'"),
    "entities in UTF-16": (with_file(OPF, BOMB.encode("utf-16")), "declares entities in 'OEBPS/content.opf'"),
    "a path outside": (with_file(OPF, package(["../../../etc/passwd"])), "refers to '../../../etc/passwd', which is outside of it"),
    "an escaped path outside": (with_file(OPF, package(["%2e%2e/%2e%2e/etc/passwd"])), "which is outside of it"),
    "an absolute path": (with_file(OPF, package(["/etc/passwd"])), "which is outside of it"),
    "a file URL": (with_file(OPF, package(["file:///etc/passwd"])), "which is outside of it"),
    "a web URL": (with_file(OPF, package(["http://example.com/a"])), "which is outside of it"),
    "10,001 documents": (with_file(OPF, package(["a"] * 10_001)), "has 10001 documents in its reading order"),
    "DRM": (with_file("META-INF/encryption.xml", DRM.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc")), r"protected against copying \(DRM\)"),
    "encrypted": (encrypted(1), "is encrypted"),
    "too large": (large, "unpacked, 'OEBPS/part 1.xhtml' is larger than"),
    "a byte order mark": (with_file(PART, b"\xff\xfe\xff"), "part 1.xhtml row 1 is not"),
    "Latin-1": (with_file(PART, b"<p>caf\xe9"), "part 1.xhtml row 1 is not UTF-8"),
    "a wrong checksum": (damaged_crc, "is damaged at 'OEBPS/part 2.xhtml'"),
    "no text": (epub(["<p></p>", "<!-- -->"]), "has no text to speak"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_book_is_a_clear_error(content, message):
    with pytest.raises(InputError, match=message) as raised:
        read("a.epub", content() if callable(content) else content)
    assert "'a.epub'" in str(raised.value) and "\n" not in str(raised.value)


def test_a_book_of_which_only_fonts_are_encrypted_is_read():
    job = read("a.epub", with_file("META-INF/encryption.xml", DRM.format(FONTS)))
    assert len(job.items) == 9


def test_all_documents_together_have_a_limit(monkeypatch):
    monkeypatch.setattr(archives, "MAX_TOTAL", len(BOOK))
    with pytest.raises(InputError, match="is larger than a book's"):
        read("a.epub", BOOK)


def test_too_many_files_and_packing_of_other_kinds(monkeypatch):
    memory = io.BytesIO(repacked(BOOK, PART))
    with zipfile.ZipFile(memory, "a", zipfile.ZIP_BZIP2) as book:
        book.writestr(PART, "<p>x")
    with pytest.raises(InputError, match="packed by a method that no EPUB has"):
        read("a.epub", memory.getvalue())
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    with pytest.raises(InputError, match="files in it; 3 are read"):
        read("a.epub", BOOK)


# --- one file ---------------------------------------------------------------------------------


def joined(directory: Path, job: Job, target: str, speak=None, **values):
    items = prepare(job.items, [f"{item.id}.wav" for item in job.items], "m", lambda voice: "v")
    done = run_batch(directory, items, speak or FakeEngine()).entries
    return join(items, done, directory, str(directory / target), Pauses(), job.tags, **values)


@pytest.mark.parametrize("extension", ["m4b", "m4a", "mp3", "opus"])
def test_a_book_becomes_one_file_with_chapters_tags_and_cover(tmp_path, extension):
    job = read("book.epub", BOOK)
    made = joined(tmp_path, job, f"book.{extension}")
    assert made.chapters == 3 and made.measured is None
    lengths = [len(item.text) / 100 for item in job.items]
    gaps = Pauses().around(job.items, 0.0, 0.0)
    at = lambda row: sum(lengths[:row]) + sum(gaps[1 : row + 1])
    with av.open(str(tmp_path / f"book.{extension}")) as container:
        found = [
            (float(c["start"] * c["time_base"]), c["metadata"]["title"])
            for c in container.chapters()
        ]
        noted = container.metadata | container.streams.audio[0].metadata
        assert (noted["title"], noted["artist"]) == ("A Book", "Ann Author")
        assert bytes(next(container.demux(container.streams.video[0]))) == PNG
    assert [title for _, title in found] == ["Chapter 1", "Chapter 2: The Name", "Chapter 3"]
    assert [start for start, _ in found] == pytest.approx([0, at(3), at(6)], abs=0.02)
    assert made.seconds == pytest.approx(sum(lengths) + sum(gaps[1:]), abs=0.1)


def test_formats_without_tags_are_joined_as_ever(tmp_path):
    for extension in ("wav", "flac", "ogg"):
        assert joined(tmp_path, read("a.epub", BOOK), f"b.{extension}").chapters == 0


def marks(*titles: str, name: str = "") -> list[tuple[str, int, int]]:
    item = Item("1", 1, "x", None, Sampling())
    items = [dataclasses.replace(item, chapter=title) for title in titles]
    found = chapters(items, [10 * i + 5 for i in range(len(items))], 99, name)
    return [(chapter.title, chapter.start, chapter.end) for chapter in found]


def test_chapters_cover_the_file():
    assert marks("", "", "") == []
    assert marks("A", "", "B", "") == [("A", 0, 25), ("B", 25, 99)]
    assert marks("", "A") == [(OPENING, 0, 15), ("A", 15, 99)]
    assert marks("", "A", name="Book") == [("Book", 0, 15), ("A", 15, 99)]
    assert marks("Part 1", "A", "", "B") == [("Part 1: A", 0, 35), ("B", 35, 99)]


@pytest.mark.parametrize("extension", ["m4b", "mp3", "opus", "flac"])
def test_a_mastered_book_has_loudness_peak_and_room_tone(tmp_path, extension):
    made = joined(tmp_path, read("a.epub", BOOK), f"b.{extension}", speak, master=Master.AUDIOBOOK)
    wave = np.concatenate(list(containers.read_blocks(tmp_path / f"b.{extension}", SAMPLE_RATE)))
    heard = loudness.measured([wave])
    assert heard.loudness() == pytest.approx(-18, abs=0.3)
    assert heard.peak <= 10 ** (-3 / 20)
    assert made.measured is not None and not made.measured.missed
    assert made.measured.loudness == pytest.approx(heard.loudness(), abs=0.01)
    head, tail = wave[2_000:15_000], wave[-50_000:-2_000]
    for tone in (head, tail):
        assert -72 < 20 * np.log10(np.sqrt(np.mean(np.square(tone)))) < -60
    assert made.seconds == pytest.approx(len(wave) / SAMPLE_RATE, abs=0.1)


def test_silence_is_not_mastered_to_noise(tmp_path):
    def silent(requests):
        for request in requests:
            wave = np.zeros(9_000, np.float32)
            yield Result(request.id, 0, (Piece(wave, request.text, 1, {"t3": 0.1}),))

    made = joined(tmp_path, read("a.txt", "One.\n"), "b.flac", silent, master=Master.AUDIOBOOK)
    assert made.measured is not None and made.measured.missed
    assert made.measured.peak < -40 and mastering.ROOM_TONE < -60


MEASURE = """
import resource
import tempfile
from pathlib import Path
from helpers.joined_books import joined_from_one_file

for chapters in (50, 500):
    with tempfile.TemporaryDirectory() as directory:
        assert joined_from_one_file(Path(directory), chapters).chapters == chapters
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_chapters():
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    few, many = map(int, done.stdout.split())
    assert many - few < 12 << 10, "KiB; as samples the sound has 34 MiB more"
