"""Casts and dialogues: who speaks which line."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Cast
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.script.reader import read

CAST = Cast.of(
    {
        "Anna": "ada",
        "Old Bob": {"voice": "bruno", "exaggeration": "0.7", "rate": 0.9},
        "narrator": "clara",
    }
)


def lines(text: str, cast: Cast = CAST, *, markup: bool = False) -> list[tuple[str | None, str]]:
    return [(s.voice, s.text.strip()) for s in read(text, cast=cast, markup=markup).spans]


def test_names_lines_that_go_on_and_the_narrator():
    text = "It was late.\n\nANNA: Hello.\n  and hello again\nold bob: Hi: you.\n\nThey left.\nAnna:\nBye."
    assert lines(text) == [
        ("narrator", "It was late."), ("Anna", "Hello.\n  and hello again"), ("Old Bob", "Hi: you."),
        ("narrator", "They left."), ("Anna", "Bye."),
    ]  # fmt: skip


def test_without_a_narrator_it_is_the_requests_voice():
    assert lines("So.\nA: x", Cast.of({"A": "ada"})) == [(None, "So."), ("A", "x")]


def test_what_is_no_name_is_text():
    for line in (
        "at 10:30 we left",
        "http://example.com",
        "he told us: go",
        "see this:that",
        "a: b",
    ):
        assert lines(line) == [("narrator", line)]


def test_unknown_names_are_listed_with_their_lines():
    with pytest.raises(TextError) as caught:
        lines("Anna: x\nCarl: y\n\nDora Mae: z\nCarl: again")
    assert str(caught.value) == (
        "'Carl' (line 2), 'Dora Mae' (line 4) are not in the cast, which has 'Anna', 'Old Bob', "
        "'narrator': add a name, or mend it"
    )


@pytest.mark.parametrize(
    "name",
    ["2B", "7", "(Voice)", "'Tis", "#1 fan", "Anna [old]", "A" * 41, "José", "Jose\u0301", "सीता",
     "a", "<b>", "Mr. and Mrs. Smith of York", "İrem", "STRASSE"],
)  # fmt: skip
def test_a_line_that_begins_with_a_name_of_the_cast_is_that_members(name):
    cast = Cast.of({"narrator": "clara", name: "ada"})
    for written in (
        name,
        f"  {name} ",
        unicodedata.normalize("NFD", name),
        name.replace(" ", "\t"),
    ):
        for colon in (": ", "：", ":\u00a0"):
            found = lines(f"Hi.\n\n{written}{colon}Hello there: you.", cast)
            assert found == [("narrator", "Hi."), (name, "Hello there: you.")]
    assert lines(f"{name}:", cast) == [] or lines(f"{name}:", cast) == [(name, "")]
    assert lines(f"{name}:30", cast) == [("narrator", f"{name}:30")]


@pytest.mark.parametrize("name", ["सीता", "José", "Jose\u0301", "Ωmega"])
def test_unknown_names_have_combining_marks_too(name):
    with pytest.raises(TextError, match=f"'{name}' \\(line 1\\) is not in the cast"):
        lines(f"{name}: x")


def test_markup_within_lines_has_its_place_in_the_text():
    found = lines("Anna: x [pause:1s] y [voice:eva] z\nOld Bob: w", markup=True)
    assert found == [("Anna", "x"), ("Anna", "y"), ("eva", "z"), ("Old Bob", "w")]
    with pytest.raises(TextError, match="line 2, column 8"):
        lines("Anna: x\nAnna: y[oops:1]", markup=True)


def test_names_for_markup_only():
    cast = Cast(CAST.members, dialogue=False)
    assert lines("Note: [voice:anna] x", cast, markup=True) == [(None, "Note:"), ("anna", "x")]
    member = cast.find("old  BOB")
    assert (member.voice, dict(member.sampling), member.rate) == (
        "bruno",
        {"exaggeration": 0.7},
        0.9,
    )


@given(
    st.lists(st.tuples(st.sampled_from(["Anna", "OLD BOB", ""]), st.integers(0, 2)), max_size=12)
)
def test_every_line_is_read_once_in_order(parts):
    number, text, expected, speaker = 0, "", [], "narrator"
    for name, more in parts:
        number += 1
        text += f"{name}: w{number}\n" if name else f"\nw{number}\n"
        speaker = {"Anna": "Anna", "OLD BOB": "Old Bob"}.get(name, "narrator")
        expected.append((speaker, f"w{number}"))
        for _ in range(more):
            number += 1
            text += f"w{number}\n"
            expected.append((speaker, f"w{number}"))
    spans = read(text, cast=CAST).spans
    assert [(s.voice, word) for s in spans for word in s.written.split()] == expected


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ({}, "it has no names"),
        ({"A": 3}, "the voice of 'A' is 3"),
        ({"A": ""}, "the voice of 'A' is ''"),
        ({"A": {"pitch": "1"}}, "unknown key 'pitch'; known: voice, rate, temperature"),
        ({"A": {"seed": "1"}}, "unknown key 'seed'"),
        ({"A": {"temperature": "9"}}, "temperature is 9.0"),
        ({"A": {"rate": "5"}}, "give 0.5 to 2"),
        ({"A": {"top_k": "x"}}, "top_k is 'x'"),
        ({"a": "x", "A": "y"}, "differ by capitals"),
        ({"a: b": "x"}, "is no name"),
        ({"a：b": "x"}, "is no name"),
        ({"José": "x", "Jose\u0301": "y"}, "differ by capitals"),
    ],
)
def test_a_wrong_cast_is_an_error(members, problem):
    with pytest.raises(InputError, match="cast") as caught:
        Cast.of(members)
    assert problem in str(caught.value)


def test_files(tmp_path):
    path = tmp_path / "cast.yaml"
    path.write_text("Anna: ada\nBob:\n  voice: bruno\n  temperature: 0.5\n")
    cast = Cast.load(path)
    assert cast == Cast.of({"Anna": "ada", "Bob": {"voice": "bruno", "temperature": 0.5}})
    assert hash(cast) == hash(Cast.load(str(path)))
    for content in ("", "- a\n", "Anna: {voice: {a: b}}\n"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"cast '.*cast.yaml'"):
            Cast.load(path)
