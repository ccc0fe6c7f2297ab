"""What each kind of job file gives: the right items, and no word that is lost in silence."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt import Sampling
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.job_file import Job, Pause, ReadOptions
from chatterbox_opt.batch.readers.captions import Captions
from chatterbox_opt.batch.readers.prose import Split
from chatterbox_opt.batch.readers.rows import words_by_reason
from chatterbox_opt.errors import InputError


def read(file: str, content: str | bytes, **options) -> Job:
    raw = content.encode() if isinstance(content, str) else content
    return job_file.read(file, raw, Sampling(), options=ReadOptions(**options))


def lines(job: Job) -> list[str]:
    """Texts of items, and the reasons of pauses in parentheses."""
    return [f"({x.reason})" if isinstance(x, Pause) else x.text for x in job.lines]


def srt(*cues: str, end: str = "900") -> str:
    """A .srt whose cues begin at each second, and end so many milliseconds later."""
    timing = f"00:00:0{{0}},000 --> 00:00:0{{0}},{end}\n"
    return "\n".join(f"{n}\n{timing.format(n)}{cue}\n" for n, cue in enumerate(cues, 1))


@pytest.mark.parametrize(
    ("timing", "start", "end"),
    [
        ("00:00:01,000 --> 00:00:02,500", 1, 2.5),
        ("00:00:01.000 --> 00:00:02.500", 1, 2.5),
        ("00:00:01,000-->00:00:02,500", 1, 2.5),
        ("00:00:01,000 -> 00:00:02,500", 1, 2.5),
        ("00:00:01,000 → 00:00:02,500", 1, 2.5),
        ("00:00:01,000 --&gt; 00:00:02,500", 1, 2.5),
        ("00:00:01,000 -- 00:00:02,500", 1, 2.5),
        ("00:00:01,000 - 00:00:02,500", 1, 2.5),
        ("00: 00: 01, 000 -> 00: 00: 02, 500", 1, 2.5),
        ("00:00:01:000 --> 00:00:02:500", 1, 2.5),
        ("-00:00:01,000 --> 00:00:02,500", 1, 2.5),
        ("00:00:01,000 --> -00:00:02,500", 1, 2.5),
        ("00:00:01 --> 00:00:02", 1, 2),
        ("0:01 --> 0:02", 1, 2),
        ("01:00:01,5 --> 100:00:02,25", 3601.5, 360002.25),
        ("  00:00:01,000 --> 00:00:02,500  X1:1 X2:2", 1, 2.5),
        ("00:00:01.000 --> 00:00:02.500 align:start position:0%", 1, 2.5),
    ],
)
def test_timings_of_every_writer_are_read(timing, start, end):
    [item] = read("a.srt", f"1\n{timing}\nHello there.\n").items
    assert (item.text, item.start, item.end) == ("Hello there.", start, end)


@pytest.mark.parametrize(
    "timing",
    ["00:00:0O,000 --> 00:00:02,000", "00:00:01,000 -->", "00.00.01,000 --> 00.00.02,000",
     "00:00:01,000 --> late", "O0:00:01,000 --> 00:00:02,000", "00:00:01,000;;;00:0:x2 --> 1"],
)  # fmt: skip
def test_a_timing_that_cannot_be_read_is_an_error_with_its_row_and_line(timing):
    content = srt("One.") + f"\n2\n{timing}\nTwo.\n"
    with pytest.raises(InputError, match=r"row 2 \(line 6\): .* is no timing that can be read"):
        read("a.srt", content)


def test_cues_end_at_the_next_timing():
    no_blanks = "1\n00:00:00,0 --> 00:00:02,0\nOne.\n2\n00:00:02,0 --> 00:00:04,0\nTwo.\n3\n00:00:04,0 --> 00:00:06,0\nThree."  # fmt: skip
    assert lines(read("a.srt", no_blanks)) == ["One.", "Two.", "Three."]
    assert lines(read("a.srt", srt("The first half,\n\nthe second half.", "Next."))) == [
        "The first half, the second half.", "Next."
    ]  # fmt: skip
    assert lines(read("a.srt", srt("\nBelow a blank.", "Next."))) == ["Below a blank.", "Next."]
    same_line = "1\n00:00:00,0 --> 00:00:02,0 Hello you.\n"
    assert lines(read("a.srt", same_line)) == ["Hello you."]
    without_numbers = "00:01.0 --> 00:02.0\nHe is\n42\n\n00:03.0 --> 00:04.0\n7\n"
    assert lines(read("a.srt", without_numbers)) == ["He is 42", "7"]
    assert lines(read("a.srt", srt("He is\n42", "", "99"))) == ["He is 42", "99"]
    from_zero = "0\n00:00:00,0 --> 00:00:02,0\nOne.\n1\n00:00:02,0 --> 00:00:04,0\nTwo."
    assert lines(read("a.srt", from_zero)) == ["One.", "Two."]
    job = read("a.srt", srt("One.", "Two.").replace("\n2\n", "\n77\n"))
    assert lines(job) == ["One.", "Two."]
    assert words_by_reason(job.dropped) == {"names of cues": 1}
    with pytest.raises(InputError, match="has no timing"):
        read("a.srt", "Just some text.\n")


def test_only_known_markup_is_removed():
    cues = {
        "If a < b and c > d, stop.": "If a < b and c > d, stop.",
        "I <3 you and you > all.": "I <3 you and you > all.",
        "R&D at AT&amp;T &copy you.": "R&D at AT&T &copy you.",
        "<i>Hello</i> <b>there</b>, <font color=\"#fff\">you</font>.": "Hello there, you.",
        "a <b and c> d": "a <b and c> d",
        r"{\an8\fad(100,100)}Hello\Nthere.": "Hello there.",
        r"C:\New\next is there.": r"C:\New\next is there.",
        "{italic}Odd.": "{italic}Odd.",
        "One<br>two<BR/>three": "One two three",
        "<c.yellow>Yes</c>, &#39;twas &lt;so&gt;.": "Yes, 'twas <so>.",
    }  # fmt: skip
    for cue, expected in cues.items():
        assert lines(read("a.srt", srt(cue))) == [expected]


def test_sounds_music_and_speakers_are_left_out_by_default_and_counted():
    cues = srt("♪ ♪", "[MUSIC PLAYING]", "(door slams) Who is there?", "JOHN: Come in.",
               "♪ La la la ♪", "...", "- [MAN 1]: No.\n>> MRS. SMITH: Yes (I think).", "Anna: Hi.")  # fmt: skip
    job = read("a.srt", cues)
    assert lines(job) == [
        "(music)", "(sound description)", "Who is there?", "Come in.", "La la la",
        "(nothing to say)", "- No. Yes (I think).", "Anna: Hi."
    ]  # fmt: skip
    assert words_by_reason(job.dropped) == {"sound descriptions": 6, "speaker names": 3}
    whole = lines(read("a.srt", cues, captions=Captions.ALL))
    assert whole[1:4] == ["[MUSIC PLAYING]", "(door slams) Who is there?", "JOHN: Come in."]


def test_rolling_captions_are_read_once_and_real_repeats_twice():
    vtt = (
        "WEBVTT\nKind: captions\n\n00:00.000 --> 00:02.000 align:start\n \n"
        "welcome<00:00:00.500><c> to</c><00:00:01.000><c> the</c><c> show</c>\n\n"
        "00:02.000 --> 00:02.010\nwelcome to the show\n \n\n"
        "00:02.010 --> 00:04.000\nwelcome to the show\nit<00:00:02.500><c> is late</c>\n\n"
        "00:04.000 --> 00:04.010\nit is late\n \n"
    )
    job = read("a.vtt", vtt)
    assert lines(job) == ["welcome to the show", "it is late"]
    assert words_by_reason(job.dropped)["repeated captions"] == 11
    rolled = srt("one", "one\ntwo", "two\nthree", "three\nfour")
    assert lines(read("a.srt", rolled)) == ["one", "two", "three", "four"]
    assert lines(read("a.srt", srt("Wait.", "Wait.", "No.\nNo."))) == ["Wait.", "Wait.", "No. No."]


def test_webvtt_names_notes_and_styles_are_no_text():
    vtt = (
        "WEBVTT - a title\n\nNOTE about\nthis\n\nSTYLE\n::cue { color: red }\n\nintro\n"
        "00:01.000 --> 00:02.000\n<v Anna>Salt &amp; pepper.</v>\n\n2\n00:03.000 --> 00:04.000\nBye.\n"
    )
    job = read("a.vtt", vtt)
    assert lines(job) == ["Salt & pepper.", "Bye."]
    assert words_by_reason(job.dropped) == {
        "notes and styles": 9, "lines before the first cue": 1, "names of cues": 1,
        "speaker names": 1,
    }  # fmt: skip


ASS_HEAD = "[Script Info]\n\n[V4+ Styles]\nFormat: Name\nStyle: Default\n\n[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"


def test_substation_files():
    line = "{}: {},0:00:0{}.00,0:00:0{}.50,Default,{},0,0,0,,{}\n"
    events = [
        line.format("Dialogue", 0, 3, 3, "Anna", r"{\i1}Hello\Nthere, you.{\i0}"),
        line.format("Dialogue", 1, 3, 3, "Anna", r"{\b1}Hello\Nthere, you."),
        line.format("Comment", 0, 4, 4, "", "a note"),
        line.format("Dialogue", 0, 5, 5, "", r"{\p1}m 0 0 l 9 9{\p0}"),
        line.format("Dialogue", 0, 1, 1, "", "[music] First."),
    ]
    job = read("a.ass", ASS_HEAD + "".join(events))
    assert lines(job) == ["First.", "Hello there, you."]
    assert set(words_by_reason(job.dropped)) == {
        "comments", "drawings", "repeated captions", "sound descriptions", "speaker names"
    }  # fmt: skip
    with pytest.raises(InputError, match=r"line 11: '\[on the next line\]' is no event"):
        read("a.ass", ASS_HEAD + events[0] + events[1] + "[on the next line]\n")
    with pytest.raises(InputError, match="is not SubStation Alpha"):
        read("a.ass", "Dialogue: 0,lost\n")
    with pytest.raises(InputError, match="has no text to speak"):
        read("a.ass", ASS_HEAD)


def test_text_without_words_is_a_pause():
    job = read(
        "a.txt", "Chapter One\n\nIt was dark.\n\n* * *\n\nSo.\n\n♪♪\n\n...\n\n🙂\n\n---\n\nEnd.\n"
    )
    assert lines(job) == [
        "Chapter One", "It was dark.", "(scene break)", "So.", *["(nothing to say)"] * 3,
        "(scene break)", "End.",
    ]  # fmt: skip
    assert [i.id for i in job.items] == ["1", "2", "3", "4"]
    assert [(i.pauses, i.starts_chapter) for i in job.items[1:]] == [
        (0, False),
        (1, True),
        (4, True),
    ]
    assert lines(read("a.jsonl", '{"text": "…"}\n{"text": "Yes."}')) == ["(nothing to say)", "Yes."]
    with pytest.raises(InputError, match="no text to speak"):
        read("a.txt", "---\n...\n")


WRAPPED = (
    "It was the best of times, it was the worst of\ntimes, it was the age of wisdom, it was the age\n"
    "of foolishness.\n\nA new paragraph be-\ngins here.\n"
)


def test_wrapped_lines_are_joined():
    job = read("a.txt", WRAPPED)
    assert lines(job) == [
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was the "
        "age of foolishness.",
        "A new paragraph begins here.",
    ]
    assert [i.row for i in job.items] == [1, 5]
    assert not any(i.starts_chapter for i in job.items[1:])
    assert job.notes == [
        "an item is a paragraph (lines are wrapped: they are joined); --split changes it"
    ]
    assert len(read("a.txt", WRAPPED, split=Split.LINES).items) == 5
    compounds = "A well-known man, whom all the others called well-\nknown, met an Anglo-\nSaxon in 1914-\n1918 -\nand left the house without a word to any-\none.\n"
    [item] = read("a.txt", compounds).items
    assert (
        item.text
        == "A well-known man, whom all the others called well-known, met an Anglo-Saxon in 1914-1918 - and left the house without a word to anyone."
    )


@pytest.mark.parametrize(
    "content",
    [
        "Hello there\nGood night\nHow are you\n",
        "This is the first sentence of the list.\nThis is the second sentence of it.\n",
        "What is your name\nMy name is a longer line than the others are\nGood\n",
        "Two roads diverged in a yellow wood,\nAnd sorry I could not travel both\nAnd be one traveler, long I stood\n",
        "yes\nno\nmaybe\n",
    ],
)
def test_lists_and_poems_keep_their_lines(content):
    assert lines(read("a.txt", content)) == content.splitlines()


def test_headings_and_two_empty_lines_start_chapters():
    text = "CHAPTER I. Down the Rabbit-Hole\n\nAlice was tired.\n\nShe sat.\n\n\nLater.\n\nXII\n\nEnd.\n\nTHE GREAT STORM\n\nRain.\n"
    starts = [i.text for i in read("a.txt", text).items if i.starts_chapter]
    assert starts == ["CHAPTER I. Down the Rabbit-Hole", "Later.", "XII", "THE GREAT STORM"]


MARKDOWN = """\
---
title: front
---
# The *Title*

Some **bold** and a [link](http://x.y "on top") with `code`.
Second line<br>here ![picture](a.png).

- item one
  - nested
1. first

> quoted

***

```python
x = 1
```

| Name | Age | Pet |
|------|-----|-----|
| Ada  | 36  |     |

<!-- hidden -->
<div>Hello <b>there</b></div>

[unused]: http://unused.example
A ~~struck~~ &amp; end.
"""


def test_markdown_is_read_as_a_person_would():
    job = read("a.md", MARKDOWN)
    assert lines(job) == [
        "The Title", "Some bold and a link with code. Second line here picture.", "item one",
        "nested", "1. first", "quoted", "(scene break)", "(code block)", "Name: Ada, Age: 36.",
        "Hello there", "A struck & end.",
    ]  # fmt: skip
    assert [i.text for i in job.items if i.starts_chapter] == ["The Title", "Name: Ada, Age: 36."]
    assert words_by_reason(job.dropped) == {
        "front matter": 2, "addresses of links": 5, "code blocks": 3, "names of empty columns": 1,
        "HTML": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[^1]: It begins.\n\n    It goes\n    on.\n\n\tIt ends.\n\nMore.", ["It begins.", "It goes on.", "It ends.", "More."]),
        ("[^note]:\n    The note.\n\nMore.", ["The note.", "More."]),
        ("[^1]: One.\n[^2]: Two.\n\n    Three.", ["One. Two.", "Three."]),
        ("[^1]: See:\n\n        x = 1\n", ["See:", "(code block)"]),
        ("[^1]: One.\n\nTwo.\n\n    x = 1\n", ["One.", "Two.", "(code block)"]),
    ],
)  # fmt: skip
def test_footnotes_in_markdown_are_read_with_all_their_paragraphs(text, expected):
    assert lines(read("a.md", text)) == expected


@pytest.mark.parametrize("begin", ["", "> ", ">> ", "  "])
def test_a_table_in_markdown_is_read_or_counted_once(begin):
    rows = ["| Name | Age |", "|---|---|", "| Ada | 36 |", "| Bob | 40 | more |"]
    job = read("a.md", "\n".join(begin + row for row in rows))
    assert lines(job) == ["Name: Ada, Age: 36.", "Name: Bob, Age: 40."]
    assert words_by_reason(job.dropped) == {"cells beyond the columns of a table": 1}


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("a.csv", "\ufeffid;text;voice\r\n1;Hello there.;bruno\r\n2;Good night.;\r\n"),
        ("a.csv", "sep=;\nid;text;voice\n1;Hello there.;bruno\n2;Good night.;\n"),
        ("a.csv", 'id, text, voice\n1, "Hello there.", bruno\n2, Good night.,\n'),
        ("a.csv", "ID,Text,Voice,\n1,Hello there.,bruno,\n\n,,,\n2,Good night.,,\n"),
        ("a.csv", "id\ttext\tvoice\n1\tHello there.\tbruno\n2\tGood night.\t\n"),
        ("a.tsv", "id\ttext\tvoice\n1\tHello there.\tbruno\n2\tGood night.\t\n"),
        ("a.csv", "id|text|voice\n1|Hello there.|bruno\n2|Good night.|\n"),
    ],
)  # fmt: skip
def test_tables_of_every_program_are_read(file, content):
    for raw in (content.encode(), content.removeprefix("\ufeff").encode("utf-16")):
        rows = [(i.id, i.text, i.voice) for i in read(file, raw).items]
        assert rows == [("1", "Hello there.", "bruno"), ("2", "Good night.", None)]


def test_ljspeech_metadata_is_read():
    text = 'LJ001-0001|He has 2 "cats".|He has two "cats".\nLJ001-0002|Good, or not|\n'
    job = read("metadata.csv", text)
    assert [(i.id, i.text) for i in job.items] == [
        ("LJ001-0001", 'He has two "cats".'), ("LJ001-0002", "Good, or not")
    ]  # fmt: skip
    assert job.notes == ["read as LJSpeech metadata: id|text|text in words"]


def test_other_encodings_are_read_by_name_and_named():
    text = "Les élèves français étudient à l’école."
    with pytest.raises(InputError, match=r"row 1 is not UTF-8: .*likely: --encoding cp1252"):
        read("a.txt", text.encode("cp1252"))
    assert lines(read("a.txt", text.encode("cp1252"), encoding="cp1252")) == [text]
    for marked in ("utf-16", "utf-32", "utf-8-sig"):
        assert lines(read("a.txt", text.encode(marked))) == [text]
    with pytest.raises(InputError, match="likely: --encoding utf-16-le"):
        read("a.txt", "Hello there.".encode("utf-16-le"))
    with pytest.raises(InputError, match="'nope' is not known"):
        read("a.txt", b"x", encoding="nope")
    with pytest.raises(InputError, match="is not UTF-16"):
        read("a.txt", b"abc", encoding="utf-16")


def test_subtitles_with_doubled_line_ends_word_times_and_joined_segments():
    doubled = srt("Hello there.", "How are you?").replace("\n", "\r\r\n")
    assert lines(read("a.srt", doubled)) == ["Hello there.", "How are you?"]
    spaced = "1\n\n00:00:01,0 --> 00:00:02,0\nHello.\n\n2\n\n00:00:03,0 --> 00:00:04,0\nBye.\n"
    assert lines(read("a.srt", spaced)) == ["Hello.", "Bye."]
    timed = "WEBVTT\n\n00:01.000 --> 00:02.000\n<00:00:01.000>Hello<00:00:01.500> world\n"
    assert lines(read("a.vtt", timed)) == ["Hello world"]
    segment = "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n00:05.000 --> 00:07.000\nThis one crosses.\n\n"
    assert lines(read("a.vtt", segment * 2)) == ["This one crosses."]


def test_words_shown_one_by_one_are_read_once():
    highlighted = srt(
        "<u>Hello</u> my friend.",
        "Hello <u>my</u> friend.",
        "Hello my <u>friend.</u>",
        "Bye.",
        end="960",
    )
    assert lines(read("a.srt", highlighted)) == ["Hello my friend.", "Bye."]
    growing = srt(
        "welcome",
        "welcome to",
        "welcome to the",
        "welcome to the show",
        "Good.",
        "Good. Yes.",
        end="999",
    )
    assert lines(read("a.srt", growing)) == ["welcome to the show", "Good.", "Good. Yes."]
    placeholder = "\n".join(f"{n}\n00:00:00,000 --> 00:00:00,000\nHa.\n" for n in (1, 2, 3))
    assert lines(read("a.srt", placeholder)) == ["Ha."] * 3
    assert lines(
        read("a.srt", srt("JOHN (V.O.): Hi.", "ANN [ON RADIO]: Ho.", "[[a] b] So.", "（笑） Ja."))
    ) == ["Hi.", "Ho.", "So.", "Ja."]


@pytest.mark.parametrize(
    ("end", "cues"),
    [
        ("500", ["Hello?", "<i>Hello?</i>", "Hello?"]),
        ("500", ["No", "No no", "No no no", "No no no no"]),
        ("500", ["<u>Hello</u> you.", "Hello <u>you.</u>"]),
        ("999", ["Hello?", "<i>Hello?</i>", "Hello?"]),
        ("999", ["Hello\nyou?", "<i>Hello</i>\n<i>you?</i>", "<i>Hello\nyou?</i>", r"{\an8}Hello you?"]),
        ("999", ["<v Ann>Hello.</v>", "<v Bob>Hello.</v>"]),
    ],
)  # fmt: skip
def test_the_same_words_are_read_again_if_somebody_says_them_again(end, cues):
    assert len(read("a.srt", srt(*cues, end=end)).items) == len(cues)


def test_parts_of_captions_that_are_marked_one_after_the_other_are_read_once():
    marked = ["One two\nthree.", "<b>One</b> two\nthree.", "One two\n<b>three.</b>", "<b>One two</b>\nthree."]  # fmt: skip
    assert lines(read("a.srt", srt(*marked, end="999"))) == ["One two three."]


def test_rolling_captions_are_read_again_after_a_gap():
    rolled = ["one", "one\ntwo", "two\nthree", "three\nfour", "four\nfive"]
    assert lines(read("a.srt", srt(*rolled, "five"))) == [
        "one",
        "two",
        "three",
        "four",
        "five",
        "five",
    ]
    touching = srt(*rolled, "five", end="999")
    assert lines(read("a.srt", touching)) == ["one", "two", "three", "four", "five"]
    late = touching + "\n7\n00:00:09,000 --> 00:00:10,000\nfive\nsix\n"
    assert lines(read("a.srt", late))[-1] == "five six"


@pytest.mark.parametrize("text", ["Wait <s" + "." * 60, "<c" + ".a" * 60, "<v" + ".a" * 60, "<" * 5000, "[" * 5000, "(" * 5000, "-" * 5000 + ">"])  # fmt: skip
def test_malformed_markup_takes_no_exponential_time(text):
    assert read("a.srt", srt("Hello " + text + " what?")).items


def test_a_long_paragraph_takes_linear_time():
    text = (
        "the words of a paragraph that has no end and no empty li-\nne in it, as in old books whose paragraphs are\n"
        * 20_000
    )
    [item] = read("a.txt", text).items
    assert item.text.count("line in it") == 20_000


def test_ass_words_that_the_library_drops_are_counted_or_refused():
    event = "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,"
    job = read("a.ass", ASS_HEAD + event + r"{a note}Hello {\p1}m 0 0{\p0}world" + "\n")
    assert lines(job) == ["Hello world"]
    assert words_by_reason(job.dropped) == {"comments": 2, "drawings": 3}
    with pytest.raises(InputError, match="too few columns"):
        read("a.ass", ASS_HEAD + "Dialogue: 0,0:00:01.00,0:00:02.00,Default,Hello there\n")
    with pytest.raises(InputError, match="these columns are unusual"):
        read("a.ass", ASS_HEAD.replace("Effect, ", "") + event + "Hello\n")


def test_lists_mixed_widths_indents_and_german_nouns():
    bullets = "- Buy a carton of milk at the corner shop\n- Call mother about the trip to the sea\n- Write the letter to the tax office now\n"
    assert lines(read("a.txt", bullets)) == bullets.splitlines()
    book = (
        "The Great Book\nby Jane Doe\n\n"
        + "One long line of a paragraph that nobody wrapped.\n\n" * 9
    )
    job = read("a.txt", book)
    assert [i.text for i in job.items][:3] == [
        "The Great Book",
        "by Jane Doe",
        "One long line of a paragraph that nobody wrapped.",
    ]
    assert not any(i.starts_chapter for i in job.items[1:])
    wrapped = "It was the best of times, it was the worst of\ntimes, it was the age of wisdom, it was the age\nof foolishness and of much else that was good.\n\n"
    address = f"See http://example.com/{'x' * 140}\nfor more.\n\n"
    assert len(read("a.txt", wrapped * 4 + address).items) == 5
    indented = (
        "   It was the best of times, it was the worst of\ntimes, it was the age of wisdom, it was the age\nof foolishness.\n"
        * 3
    )
    assert len(read("a.txt", indented).items) == 3
    german = "Er sah am Abend hinaus in das letzte graue\nLicht und dachte an die weiten und stillen\nFelder seiner Jugend, an den alten grauen\nmann mit dem schweren braunen und nassen\nKoffer und an seine kleine Schwester, die\nam Fenster stand.\n"
    assert len(read("a.txt", german).items) == 1


def test_suspended_hyphens_and_headings_without_empty_lines():
    text = "The two-\nand three-year-old horses of the mother-in-\nlaw, and of no other mother-in-law, ran exam\u00ad\nple races there.\n"
    assert lines(read("a.txt", text, split=Split.PARAGRAPHS)) == [
        "The two- and three-year-old horses of the mother-in-law, and of no other mother-in-law, ran example races there."
    ]
    book = "Chapter 2 The Storm\nIt was dark and the rain fell on all the roofs of\nthe town that night.\n\nMild\n\nI\n\nAnd so the man went to\n\n12\n\nthe city.\n"
    job = read("a.txt", book)
    assert [i.text for i in job.items if i.starts_chapter] == ["Chapter 2 The Storm"]


def test_markdown_keeps_cells_notes_and_dialogue():
    job = read("a.md", "| A | B |\n|---|---|\n| 1 | 2 | three lost |\n")
    assert words_by_reason(job.dropped) == {"cells beyond the columns of a table": 2}
    assert (
        lines(read("a.md", "---\n\nOnce upon a time.\n\n---\n\nThe end.\n"))[1]
        == "Once upon a time."
    )
    toml = read("a.md", '+++\ntitle = "My Book"\n+++\n\nText.\n')
    assert (lines(toml), words_by_reason(toml.dropped)) == (["Text."], {"front matter": 3})
    assert lines(read("a.md", "[Anna]: Hello\n[Bob]: Hi\n")) == ["[Anna]: Hello [Bob]: Hi"]
    assert lines(read("a.md", "Text[^1].\n\n[^1]: Ibid.\n")) == ["Text.", "Ibid."]
    assert lines(read("a.md", "3. ```\n   code\n   ```\n\nAfter.\n")) == ["(code block)", "After."]
    assert lines(read("a.md", "<p>Tom &amp; Jerry</p>\n<p>B</p>\n")) == ["Tom & Jerry", "B"]
    nested = "".join(f"{'  ' * depth}- word{depth}\n" for depth in range(40))
    assert len(read("a.md", nested).items) == 40


def test_tables_of_data_sets_and_with_plain_quotes():
    vits = read("a.csv", "wavs/1.wav|Hello there my friend.|0\nwavs/2.wav|Good night to all.|1\n")
    assert [i.text for i in vits.items] == ["Hello there my friend.", "Good night to all."]
    assert words_by_reason(vits.dropped) == {"third columns": 2}
    long = "LJ001-0001|Printing, in the only sense, with which, we are, concerned|Printing, in the only sense, with which, we are, concerned\n"
    assert read("a.csv", long).items[0].id == "LJ001-0001"
    with pytest.raises(InputError, match="unknown column 'audio_file'"):
        read("a.csv", "audio_file|text|speaker_name\nwavs/1.wav|Hello there.|bob\n")
    quotes = read("a.tsv", 'id\ttext\n1\t"Go," he said.\n2\t"Stop\n')
    assert [i.text for i in quotes.items] == ['"Go," he said.', '"Stop']
    assert read("a.csv", "\n\ntext;voice;cfg_weight\nHello ; anna ;0,5\n").items[0].voice == "anna"
    with pytest.raises(InputError, match="a key is there twice"):
        read("a.jsonl", '{"text": "First", "text": "Second"}')


# property: no word of a file is neither spoken, nor counted, nor is the file refused
WORD = st.from_regex(r"[a-z]{2,7}", fullmatch=True)
GLUE = ["\n", "\n", "\n\n", " ", " ", "-\n", ", ", ". ", "\n\n\n", "\n* * *\n", "\r\n", "\n ", "\t"]
SUBTITLE_GLUE = [
    *GLUE, "\n00:00:01,000 --> 00:00:02,000\n", "\n\n2\n00:00:02,000 -> 00:00:03,000\n", "\n7\n",
    " < ", " > ", "<i>", "</i>", "[", "]", "(", ")", "♪", r"{\an8}", "\\N", ": ", "&amp;", " --> ",
    "\n\nNOTE ", "<v ", "00:00:01.000", "\n00:03 --> 00:04 ", "<00:00:00.500><c> ", "|",
]  # fmt: skip
MARKDOWN_GLUE = [
    *GLUE, "\n# ", "\n\n- ", "\n1. ", " **", "** ", "`", "\n```\n", "](", "[", "![", ")", "<b>", "<!-- ",
    " -->", "\n| a | b |\n|---|---|\n| ", " | ", "\n---\n", "> ", "<", ">", "&", ";", "    ", "~~", "_", "\n[x]: ",
]  # fmt: skip
TABLE_GLUE = [*GLUE, ",", ";", "|", '"', ", ", '","', "\n,", "sep=;\n"]


def letters(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


def text_of(glue: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(WORD, st.sampled_from(glue)), min_size=1, max_size=14).map(
        lambda parts: "".join(f"{word}{between}" for word, between in parts)
    )


@pytest.mark.parametrize(
    ("kind", "glue", "head"),
    [
        ("txt", GLUE, ""),
        ("srt", SUBTITLE_GLUE, "1\n00:00:00,000 --> 00:00:01,000\n"),
        ("vtt", SUBTITLE_GLUE, "WEBVTT\n\n00:00.000 --> 00:01.000\n"),
        ("md", MARKDOWN_GLUE, ""),
        ("ass", SUBTITLE_GLUE, ASS_HEAD + "Dialogue: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,"),
        ("tsv", TABLE_GLUE, "text\tid\n"),
        ("csv", TABLE_GLUE, "text,id\n"),
        ("csv", TABLE_GLUE, ""),
    ],
)
def test_no_word_is_lost_in_silence(kind, glue, head):
    @settings(max_examples=100)
    @given(text_of(glue))
    def check(body: str) -> None:
        content = head + body
        try:
            job = read(f"a.{kind}", content)
        except InputError as error:
            assert f"a.{kind}" in str(error)
            return
        shown = [x.text for x in job.lines] + [part.text for part in job.dropped]
        for name in ("voice", "id"):
            shown += [str(getattr(x, name, "") or "") for x in job.lines]
        kept = letters(" ".join(shown))
        if any("LJSpeech" in note for note in job.notes):
            return  # of its two texts one is spoken
        body = body.replace("-\n", "") if kind == "txt" else body
        for word in set(re.findall(r"[a-z]{2,}", body.replace("&amp;", " "))):
            assert word in kept or word in ("an", "sep"), (word, job)

    check()
