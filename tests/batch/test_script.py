"""Markup, lexicons and casts in job files: columns, identity, names, verification, other machines."""

from __future__ import annotations

import json

import pytest
from helpers.fake_engine import FakeEngine, run_batch

from chatterbox_opt import Cast, Lexicon, Request, Sampling
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.executors import with_voices
from chatterbox_opt.batch.job_file import ReadOptions
from chatterbox_opt.batch.readers.captions import Captions
from chatterbox_opt.batch.readers.prose import Split
from chatterbox_opt.batch.resuming import prepare
from chatterbox_opt.errors import InputError

CAST = Cast.of({"Anna": "ada", "Bob": {"voice": "bruno", "temperature": 0.5}})


def items(content: str, name: str = "a.txt", **options) -> list[job_file.Item]:
    return job_file.read(
        name, content.encode(), Sampling(seed=1), options=ReadOptions(**options)
    ).items


def settings_hashes(todo, voices=lambda voice: f"v-{voice}") -> list[str]:
    prepared = prepare(todo, [f"{i}.wav" for i in range(len(todo))], "m", voices)
    return [item.settings_hash for item in prepared]


def test_the_column_overrides_the_option():
    rows = "markup,text\ntrue,a [pause:1s] b\nfalse,a [pause:1s] b\n,c\n"
    assert [item.markup for item in items(rows, "a.csv")] == [True, False, False]
    assert [item.markup for item in items(rows, "a.csv", markup=True)] == [True, False, True]
    lines = "\n".join(json.dumps({"text": "a", "markup": flag}) for flag in (True, 0, "Yes"))
    assert [item.markup for item in items(lines, "a.jsonl")] == [True, False, True]
    with pytest.raises(InputError, match='row 2: markup is "maybe"; give true or false'):
        items("markup,text\nmaybe,a\n", "a.csv")


def test_errors_have_the_row():
    with pytest.raises(InputError, match=r"'a.csv' row 3: line 1, column 3: \[oops:1\] is unknown"):
        items("text\na\nb [oops:1]\n", "a.csv", markup=True)
    with pytest.raises(InputError, match="row 2: 'Carl' .* is not in the cast"):
        items("Anna: a\nCarl: b\n", cast=CAST)


@pytest.mark.parametrize("split", ["auto", "paragraphs"])
def test_lines_without_a_name_go_on_with_the_line_before(split):
    text = "It was late.\n\nANNA: Are you there?\nBOB: I am. Where\nelse would I be?\n\nThe end.\n"
    found = items(text, cast=CAST, split=Split(split))
    heard = [(span.voice, span.text.strip()) for item in found for span in item.script().spans]
    assert heard == [
        (None, "It was late."),
        ("Anna", "Are you there?"),
        ("Bob", "I am. Where else would I be?"),
        (None, "The end."),
    ]
    assert [item.row for item in found] == [1, 3, 4, 7]
    with pytest.raises(InputError, match="row 4: 'EVE' .* is not in the cast"):
        items(text.replace("BOB", "EVE"), cast=CAST, split=Split(split))


def test_a_row_of_markup_alone_is_a_pause():
    job = job_file.read(
        "a.txt", b"a\n[pause:2s]\nb\n", Sampling(), options=ReadOptions(markup=True)
    )
    assert [len(job.items), len(job.pauses), job.items[1].pauses] == [2, 1, 1]


def test_the_title_of_a_chapter_has_no_markup():
    text = "# [pause:1s] [say:Chapter one]Chapter I[/say]\n\nIt was cold.\n"
    heading, paragraph = items(text, "a.md", markup=True)
    assert (heading.chapter, paragraph.chapter) == ("Chapter I", "")
    assert heading.script().text.strip() == "Chapter one"
    assert items(text, "a.md")[0].chapter == "[pause:1s] [say:Chapter one]Chapter I[/say]"


def test_written_words_have_no_markup_and_no_names():
    [item] = items("Anna: the [say:Doctor]Dr.[/say] is here", cast=CAST, markup=True)
    assert item.written == "the Dr. is here" and item.script().text == "the Doctor is here"
    assert item.script().voices == ["Anna"]


def test_words_on_both_sides_of_a_pause_are_two_words():
    [item] = items("Hello[pause:1s]world[voice:ada]there", markup=True)
    assert item.written == "Hello world there"


def test_an_item_without_a_hit_is_what_it_was():
    plain = items("nguyen\nother\n")
    with_lexicon = items("nguyen\nother\n", lexicon=Lexicon.of({"nguyen": "win"}), markup=True)
    before, after = settings_hashes(plain), settings_hashes(with_lexicon)
    assert before[0] != after[0] and before[1] == after[1]
    changed = items("nguyen\nother\n", lexicon=Lexicon.of({"nguyen": "noo yen"}), markup=True)
    assert settings_hashes(changed)[0] not in (before[0], after[0])


@pytest.mark.parametrize("text", ["Anna: a", "[voice:ada]a", "[rate:0.8]a[/rate]", "a[pause:1s]"])
def test_what_changes_the_sound_changes_the_item(text):
    cast = CAST if text.startswith("Anna") else None
    [marked] = settings_hashes(items(text, markup=True, cast=cast))
    assert marked not in settings_hashes(items(text))
    if cast:
        others = [
            Cast.of({"Anna": "bruno"}),
            Cast.of({"Anna": {"voice": "ada", "temperature": 0.5}}),
            Cast.of({"Anna": {"voice": "ada", "rate": 0.9}}),
        ]
        made = [settings_hashes(items(text, cast=other))[0] for other in others]
        assert len({marked, *made}) == 4
        same = settings_hashes(items(text, cast=Cast.of({"Anna": "ada", "New": "clara"})))
        assert [marked] == same
    if "voice" in text or cast:  # another recording under the same name
        assert [marked] != settings_hashes(
            items(text, markup=True, cast=cast), lambda voice: f"w-{voice}" if voice else "v-None"
        )


def test_a_run_passes_everything_on_and_notes_the_written_words(tmp_path):
    speak = FakeEngine()
    lexicon = Lexicon.of({"nguyen": "win"})
    todo = items("Anna: hello [pause:1s] you\n", cast=CAST, markup=True, lexicon=lexicon)
    summary = run_batch(tmp_path, prepare(todo, ["1.wav"], "m", lambda voice: "v"), speak)
    [request] = speak.asked
    assert (request.markup, request.lexicon, request.cast) == (True, lexicon, CAST)
    assert " ".join(summary.entries["1"].text.split()) == "hello you"


def test_recordings_that_other_machines_cannot_read_travel_with_the_request():
    asked = []

    def synthesize(requests):
        asked.extend(requests)
        return iter(())

    texts = ["Anna: a [voice:eva] b", "a [voice:eva] b"]
    requests = [
        Request("1", texts[0], markup=True, cast=CAST),
        Request("2", texts[1], markup=True),
        Request("3", "a"),
    ]
    list(with_voices(synthesize, lambda name: ("Voice", name))(requests))
    first, second, third = asked
    assert {m.name: m.voice for m in first.cast.members} == {
        "Anna": ("Voice", "ada"),
        "eva": ("Voice", "eva"),
    }
    assert first.cast.dialogue and not second.cast.dialogue and third.cast is None
    assert second.cast.find("eva").voice == ("Voice", "eva")


SUBTITLES = """1
00:00:01,000 --> 00:00:02,000
[door] ANNA (on radio): Hello.
- BOB: Good day.

2
00:00:03,000 --> 00:00:04,000
and so on
"""


@pytest.mark.parametrize("captions", Captions)
def test_markup_in_subtitles_is_no_sound_description(captions):
    text = SUBTITLES.replace("[door] ", "").replace(
        "and so on", "[pause:2s] [rate:0.9]Slowly[/rate]"
    )
    text += "\n3\n00:00:05,000 --> 00:00:06,000\n[pause:4s]\n"
    job = job_file.read(
        *("a.srt", text.encode(), Sampling()), options=ReadOptions(captions=captions, markup=True)
    )
    assert job.items[1].edges == (2, None) and job.items[1].written.strip() == "Slowly"
    assert [pause.silence for pause in job.pauses] == [4]
    unmarked = job_file.read("a.srt", text.encode(), Sampling())
    assert [part.text for part in unmarked.dropped if "pause" in part.text] == [
        "[pause:2s]",
        "[pause:4s]",
    ]


def test_names_of_subtitles_are_those_of_the_cast():
    job = job_file.read(
        *("a.srt", SUBTITLES.encode(), Sampling()),
        options=ReadOptions(captions=Captions.NAMES, cast=CAST),
    )
    first, second = job.items
    spans = first.script().spans
    assert [(s.voice, s.written.strip()) for s in spans] == [
        ("Anna", "Hello."),
        ("Bob", "Good day."),
    ]
    assert second.script().voices == []
    assert sorted(part.text for part in job.dropped) == ["(on radio)", "[door]"]
    ass = (
        "[Script Info]\n[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: 0,0:00:01.00,0:00:02.00,A,Bob,0,0,0,,Hi there.\n"
    )
    [item] = job_file.read(
        "a.ass", ass.encode(), Sampling(), options=ReadOptions(captions=Captions.NAMES, cast=CAST)
    ).items
    assert item.script().voices == ["Bob"] and item.written == "Hi there."
