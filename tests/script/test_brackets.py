"""Markup in brackets: what it means, that no word is lost, and errors with their place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.errors import TextError
from chatterbox_opt.script.reader import markup_in, read
from chatterbox_opt.script.spans import Script

VOICES = ("ada", "bruno", "samples/speaker.flac")


def spans(text: str) -> list[tuple]:
    found = read(text, markup=True).spans
    return [(span.text, span.voice, span.rate, span.pause) for span in found]


def test_each_tag_does_what_it_says():
    assert spans("Wait [pause:700ms] for it.") == [
        ("Wait ", None, 1, None),
        (" for it.", None, 1, 0.7),
    ]
    assert spans("[voice:ada]Hi. [/voice]Me.") == [("Hi. ", "ada", 1, None), ("Me.", None, 1, None)]
    assert spans("a [rate:0.8]b[/rate] c") == [
        ("a ", None, 1, None),
        ("b", None, 0.8, None),
        (" c", None, 1, None),
    ]
    [span] = read("the [say:Doctor]Dr.[/say] came", markup=True).spans
    assert (span.text, span.written) == ("the Doctor came", "the Dr. came")


def test_pauses_add_up_and_may_begin_or_end_a_text():
    assert spans("[pause:1s][pause: 1.5 s ]a[pause:.5s]") == [
        ("a", None, 1, 2.5),
        ("", None, 1, 0.5),
    ]


def test_rates_multiply_within_the_range():
    found = spans("[rate:0.8]a[rate:0.8]b[rate:0.5]c[/rate][/rate][/rate]d")
    assert [rate for _, _, rate, _ in found] == pytest.approx([0.8, 0.64, 0.5, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello[pause:1s]world", "Hello world"),
        ("Hello[pause:0s]world", "Hello world"),
        ("Hello [pause:1s]world", "Hello world"),
        ("Hello[pause:1s]\nworld", "Hello\nworld"),
        ("Hello[pause:1s], world[pause:1s].", "Hello, world."),
        ("“Hello[pause:1s]”", "“Hello”"),
        ("Hello[pause:1s](world[pause:1s])", "Hello (world)"),
        ('Say[pause:1s]"hello[pause:1s]" now', 'Say "hello" now'),
        ("Hola[pause:1s]¿Qué?", "Hola ¿Qué?"),
        ("Hi[voice:bruno]there", "Hi there"),
        ("Hi[voice:bruno][/voice]there", "Hithere"),
        ("Hi[voice:bruno].[/voice]There", "Hi. There"),
        ("[pause:1s]Hi[rate:0.8][pause:1s][/rate]there[pause:1s]", "Hi there"),
        ("un[rate:0.8]believ[/rate]able", "unbelievable"),
        ("[say:One]1[/say][pause:1s]two", "1 two"),
    ],
)
def test_what_breaks_speech_ends_a_word(text, words):
    found = read(text, markup=True)
    assert found.written == words and found.text == words.replace("1", "One")


def test_what_has_no_colon_is_text():
    for text in ("[laugh] so [3] it [clear throat] is", "a [ b ] c", "[say it] [10:30]", "\\ [x"):
        assert read(text, markup=True) == Script.of(text)
    assert spans(r"\[pause:1s] is \[voice:x]") == [("[pause:1s] is [voice:x]", None, 1, None)]


@given(st.text())
def test_escaped_text_is_byte_for_byte_what_it_was(text):
    assert read(text.replace("[", r"\["), markup=True).text == text


@given(st.text())
def test_without_markup_every_text_is_literal(text):
    assert read(text).text == read(text).written == text


STEPS = st.one_of(
    st.builds(lambda n: ("words", n), st.integers(1, 3)),
    st.builds(lambda ms: ("pause", ms), st.integers(0, 2000)),
    st.builds(lambda name: ("voice", name), st.sampled_from([None, *VOICES])),
    st.builds(lambda rate: ("rate", rate), st.sampled_from([0.5, 0.9, 1.25, 2.0])),
    st.just(("close", None)),
    st.just(("say", None)),
)


@given(st.lists(STEPS, max_size=30))
def test_every_word_is_read_once_in_order_by_its_voice(steps):
    text, voice, rates, number, silence = "", None, [], 0, 0
    expected, written = [], []
    for kind, value in steps:
        if kind == "words":
            for _ in range(value):
                number += 1
                text += f" w{number} "
                expected.append((f"w{number}", voice))
                written.append(f"w{number}")
        elif kind == "say":
            number += 1
            text += f" [say:alias{number}]x{number}[/say] "
            expected.append((f"alias{number}", voice))
            written.append(f"x{number}")
        elif kind == "pause":
            text, silence = text + f"[pause:{value}ms]", silence + value
        elif kind == "voice":
            text, voice = text + (f"[voice:{value}]" if value else "[/voice]"), value
        elif kind == "rate":
            text += f"[rate:{value}]"
            rates.append(value)
        elif rates:
            text += "[/rate]"
            rates.pop()
    script = read(text + "[/rate]" * len(rates), markup=True)
    assert [(word, span.voice) for span in script.spans for word in span.text.split()] == expected
    assert script.written.split() == written
    assert script.seconds == pytest.approx(silence / 1000)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("ab\ncd [pasue:1s]", "line 2, column 4", "is unknown; known: [pause:700ms], [voice:NAME]"),
        ("[pause:1x]", "line 1, column 1", "is no pause; give [pause:700ms]"),
        ("[pause:9999s]", "line 1, column 1", "at most 600s"),
        ("[pause:400s][pause:400s]", "line 1, column 13", "add up to 800s"),
        ("é [pause:1s", "line 1, column 3", "has no ] at its end"),
        ("[pause]", "line 1, column 1", "has no value"),
        ("[pause:1s\n]", "line 1, column 1", "has no ]"),
        ("[/pause]", "line 1, column 1", "a pause is one tag"),
        ("a [rate:3]b[/rate]", "line 1, column 3", "is no rate; give [rate:0.5] to [rate:2]"),
        ("[rate:nan]b[/rate]", "line 1, column 1", "is no rate"),
        ("[rate:0.9]b", "line 1, column 1", "has no [/rate] behind it"),
        ("b[/rate]", "line 1, column 2", "closes nothing"),
        ("[say:x]b", "line 1, column 1", "has no [/say] behind it"),
        ("[say:x]a[pause:1s]b[/say]", "line 1, column 9", "holds words only"),
        ("[voice:]b", "line 1, column 1", "has no value"),
        ("[/laugh]", "line 1, column 1", "is unknown"),
    ],
)
def test_an_error_has_the_place_and_what_is_known(text, place, problem):
    with pytest.raises(TextError) as caught:
        read(text, markup=True)
    assert str(caught.value).startswith(place) and problem in str(caught.value)


def test_what_looks_like_markup():
    assert markup_in("a [pause:1s] b") == "[pause:1s]"
    assert markup_in("<speak>Hi</speak>") == "<speak>"
    assert markup_in('Hi <break time="1s"/> you') == '<break time="1s"/>'
    for text in ("[laugh] [3] [see: there]", "a < b", "<b>bold</b>", ""):
        assert not markup_in(text)
