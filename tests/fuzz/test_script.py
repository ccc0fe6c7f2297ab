"""Any text with markup, any lexicon, any cast: spans with all of its words, or an error in one line."""

from __future__ import annotations

import pytest
from helpers.fuzz import examples, soon
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Cast, Lexicon
from chatterbox_opt.errors import InputError, TextError
from chatterbox_opt.script.reader import read
from chatterbox_opt.text.languages import LANGUAGES
from chatterbox_opt.utils.printable import MESSAGE_CHARACTERS, printable

UNITS = [
    *(
        "[",
        "]",
        "/",
        ":",
        "\\[",
        "[pause:700ms]",
        "[pause:1.5s]",
        "[pause:",
        "[pause]",
        "[voice:ada]",
        "[/voice]",
    ),
    *(
        "[rate:0.9]",
        "[rate:2]",
        "[/rate]",
        "[say:x y]",
        "[/say]",
        "[laugh]",
        "[oops:1]",
        "a",
        "B.",
        "1",
        " ",
        "\n",
    ),
    *(
        "Anna: ",
        "BOB:",
        "Carl: ",
        "\n\n",
        "\r\n",
        "\u2028",
        "\0",
        "\ud800",
        "é",
        "東",
        "nguyen",
        "New  York",
    ),
]
TAGS = [
    *(
        "<speak>",
        "</speak>",
        "<p>",
        "</p>",
        "<s>",
        "</s>",
        "<break/>",
        "<break time='1s'/>",
        "<break strength='x'/>",
    ),
    *(
        "<prosody rate='90%'>",
        "<prosody pitch='1'>",
        "</prosody>",
        "<voice name='ada'>",
        "</voice>",
        "<sub alias='a b'>",
    ),
    *(
        "</sub>",
        "<emphasis>",
        "</emphasis>",
        "<foo>",
        "&amp;",
        "&x;",
        "&#0;",
        "&#65;",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
    ),
    *(
        "<!DOCTYPE a [<!ENTITY b 'c'>]>",
        "<?xml version='1.0'?>",
        "<?xml version='1.0' encoding='utf-16'?>",
        "<?a b?>",
    ),
]
KINDS = st.sampled_from(["characters", "cardinal", "ordinal", "date", "time", "telephone", "x"])
FORMATS = st.sampled_from(["", "dmy", "mdy", "ym", "y", "x"])
CONTENTS = st.text("0123456789-/.:, +apmAZé²٣", max_size=40) | st.text(max_size=9)
SAY_AS = st.builds(
    lambda kind, form, text: f"<say-as interpret-as='{kind}' format='{form}'>{text}</say-as>",
    KINDS,
    FORMATS,
    CONTENTS,
)
BRACKETS = st.lists(st.sampled_from(UNITS) | st.text(max_size=3), max_size=30).map("".join)
PIECES = st.sampled_from(TAGS) | SAY_AS | st.text(max_size=5)
SSML = st.lists(PIECES, max_size=20).map(lambda parts: f"<speak>{''.join(parts)}</speak>")
PATTERNS = st.text("ab(|)*+?.[]\\1^$/{}", min_size=1, max_size=12)
KEYS = (
    st.text(max_size=5)
    | PATTERNS.map(lambda pattern: f"/{pattern}/")
    | st.sampled_from(["de", "a", "New York"])
)
READINGS = st.text(max_size=5) | st.sampled_from([r"\1", r"\g<1>", "x"])
WORDS = st.dictionaries(KEYS, READINGS | st.dictionaries(KEYS, READINGS, max_size=2), max_size=3)
VALUES = st.sampled_from(["ada", "", "0.5", "1e9", "nan", 3, None]) | st.text(max_size=4)
MEMBERS = st.dictionaries(
    st.sampled_from(["Anna", "Bob", "narrator", "a:", ""]) | st.text(max_size=4),
    VALUES | st.dictionaries(st.sampled_from(["voice", "rate", "temperature", "top_k", "x"]), VALUES, max_size=3),
    max_size=3,
)  # fmt: skip


def is_short(error: Exception) -> bool:
    """Whether its message is printed whole: ``message_line`` shortens no other."""
    return len(printable(str(error))) <= MESSAGE_CHARACTERS


def check(text: str, **how) -> None:
    try:
        script = read(text, markup=True, **how)
    except TextError as error:
        assert is_short(error)
        return
    assert all(span.pause is None or 0 <= span.pause <= 600 for span in script.spans)
    assert all(0.5 <= span.rate <= 2 for span in script.spans)
    assert all(part.text or part.written for span in script.spans for part in span.parts)


@examples(60)
@given(text=BRACKETS)
def test_any_text_in_brackets(text):
    check(text)


@examples(60)
@given(
    text=SSML | BRACKETS.map(lambda text: "<speak>" + text),
    language=st.sampled_from([None, *LANGUAGES]),
)
def test_any_ssml(text, language):
    check(text, language=language)


@examples(40)
@given(words=WORDS, text=BRACKETS)
def test_any_lexicon(words, text):
    try:
        lexicon = Lexicon.of(words)
    except InputError as error:
        assert "lexicon" in str(error) and is_short(error)
    else:
        check(text, lexicon=lexicon)


@examples(40)
@given(members=MEMBERS, text=BRACKETS)
def test_any_cast(members, text):
    try:
        cast = Cast.of(members)
    except InputError as error:
        assert "cast" in str(error) and is_short(error)
    else:
        check(text, cast=cast)


@pytest.mark.parametrize("load", [Lexicon.load, Cast.load], ids=["lexicon", "cast"])
@examples(30)
@given(
    content=st.binary(max_size=60) | st.text("ab:/- \n{}[]&*!|>'\"#?", max_size=40).map(str.encode)
)
def test_any_file(tmp_path, load, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    try:
        load(path)
    except InputError as error:
        assert "any.yaml" in str(error)


@pytest.mark.parametrize("unit", [*UNITS, *TAGS], ids=ascii)
def test_a_long_text_takes_little_time(unit):
    with soon():
        check(unit * 20_000)
        check("<speak>" + unit * 20_000)


@pytest.mark.parametrize(
    ("unit", "count"),
    [
        *(("\\[", 400_000), ("<s>a</s>", 60_000), ("<s> </s>", 60_000)),
        *(("<s>a<break strength='none'/></s>", 40_000), ("<s><sub alias='a'>b</sub></s>", 40_000)),
    ],
)
def test_a_span_of_many_additions_takes_little_time(unit, count):
    text = unit * count if unit == "\\[" else f"<speak>{unit * count}</speak>"
    with soon():
        check(text)


@pytest.mark.parametrize("unit", ["[pause:0s]a", "[voice:a]x[voice:b]y", "[rate:2]a[/rate]b"])
def test_many_spans_are_joined_in_little_time(unit):
    script = read(unit * 20_000, markup=True)
    with soon():
        assert script.text and script.written
