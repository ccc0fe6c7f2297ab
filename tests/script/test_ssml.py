"""SSML: its elements, that no word is lost, and what is refused."""

from __future__ import annotations

from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.errors import TextError
from chatterbox_opt.script.reader import read

CHARACTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")


def script(inner: str, language: str | None = None):
    return read(f"<speak>{inner}</speak>", markup=True, language=language)


def words(inner: str, language: str | None = None) -> str:
    return " ".join(script(inner, language).text.split())


def test_each_element_does_what_it_says():
    made = script('<p>One</p><p>Two</p> <break time="500ms"/><prosody rate="90%">slow</prosody>')
    assert made.text.split("\n\n") == ["", "One", "", "Two", " slow"]
    assert [(s.text.strip(), s.rate, s.pause) for s in made.spans if s.text.strip()] == [
        ("One\n\n\n\nTwo", 1, None), ("slow", 0.9, 0.5)
    ]  # fmt: skip
    assert made.seconds == 0.5
    assert words("<s>One</s><s>Two?</s> three") == "One. Two? three"
    assert words("<s>One</s>") == "One." and script("<s>One</s>").written.split() == ["One"]
    assert words("very <emphasis level='strong'>big</emphasis>") == "very big"
    made = script("<voice name='ada'>a<voice name='bruno'>b</voice>c</voice>d")
    assert [(s.text, s.voice) for s in made.spans] == [
        ("a", "ada"), ("b", "bruno"), ("c", "ada"), ("d", None)
    ]  # fmt: skip
    made = script("<sub alias='World Wide Web'>WWW</sub>")
    assert (made.text, made.written) == ("World Wide Web", "WWW")


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ("One<break/>two", "One two"),
        ("One<break strength='none'/>two", "Onetwo"),
        ("One<p>two</p>three", "One two three"),
        ("<s>One</s>two<voice name='ada'>three</voice>", "One two three"),
        ("un<emphasis>believ</emphasis>able", "unbelievable"),
        ("un<prosody rate='slow'>believ</prosody>able", "unbelievable"),
        ("One<voice name='ada'>,</voice> two", "One, two"),
    ],
)
def test_what_breaks_speech_ends_a_word(inner, words):
    assert " ".join(script(inner).written.split()) == words


@pytest.mark.parametrize(
    ("rate", "factor"),
    [
        ("slow", 0.75),
        ("fast", 1.25),
        ("default", 1),
        ("80%", 0.8),
        ("+20%", 1.2),
        ("-20%", 0.8),
        ("1.5", 1.5),
    ],
)
def test_rates_in_all_forms(rate, factor):
    [span] = script(f"<prosody rate='{rate}'>a</prosody>").spans
    assert span.rate == pytest.approx(factor)


@pytest.mark.parametrize(
    ("attributes", "seconds"),
    [
        ("", 0.5),
        ("strength='weak'", 0.25),
        ("strength='x-strong'", 1.5),
        ("strength='none'", 0),
        ("time='+2s'", 2),
    ],
)
def test_breaks(attributes, seconds):
    assert script(f"a<break {attributes}/>b").seconds == seconds


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("characters", "a1-B", "A one dash B"),
        ("spell-out", "BBC", "B B C"),
        ("cardinal", "1,234", "one thousand two hundred and thirty-four"),
        ("cardinal", "-2.5", "minus two point five"),
        ("cardinal", "1,5", "one point five"),
        ("cardinal", "1.234", "one point two three four"),
        ("cardinal", "1,00,000", "one hundred thousand"),
        ("cardinal", "1999", "one thousand nine hundred and ninety-nine"),
        ("ordinal", "3", "third"),
        ("ordinal", "21st", "twenty-first"),
        ("date", "2026-11-28", "November twenty-eighth, twenty twenty-six"),
        ("date", "28.11.2026", "November twenty-eighth, twenty twenty-six"),
        ("date", "11/28/2026", "November twenty-eighth, twenty twenty-six"),
        ("date", "28/11/2026", "November twenty-eighth, twenty twenty-six"),
        ("date", "Nov 28", "November twenty-eighth"),
        ("time", "14:05", "fourteen oh five"),
        ("time", "2:30 p.m.", "two thirty P M"),
        ("time", "9am", "nine A M"),
        ("telephone", "+1 (555) 010", "plus one, five five five, zero one zero"),
    ],
)
def test_say_as(kind, content, expected):
    assert words(f"<say-as interpret-as='{kind}'>{content}</say-as>") == expected


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        ("dmy", "1/2/26", "February first, twenty twenty-six"),
        ("mdy", "1/2/26", "January second, twenty twenty-six"),
        ("ym", "2026-11", "November, twenty twenty-six"),
        ("md", "11/28", "November twenty-eighth"),
        ("y", "1999", "nineteen ninety-nine"),
        ("m", "3", "March"),
        ("d", "3", "third"),
    ],
)
def test_dates_of_a_format(form, content, expected):
    found = words(f"<say-as interpret-as='date' format='{form}'>{content}</say-as>")
    assert found == expected


def test_other_languages_have_their_numbers():
    assert words("<say-as interpret-as='cardinal'>1.234,5</say-as>", "de") == (
        "eintausendzweihundertvierunddreißig Komma fünf"
    )
    for language, number, expected in (
        ("de", "-3", "minus drei"),
        ("de", "0,125", "null Komma eins zwei fünf"),
        ("de", "1.234", "eintausendzweihundertvierunddreißig"),
        ("de", "1,234", "eins Komma zwei drei vier"),
        ("it", "3,14", "tre virgola uno quattro"),
        ("tr", "12,34", "oniki virgül üç dört"),
        ("ar", "0,5", "صفر فاصلة خمسة"),
        ("fr", "1 234,5", "mille deux cent trente-quatre virgule cinq"),
        ("hi", "1,00,000", "1,00,000"),
        ("zh", "-2.5", "-2.5"),
    ):
        assert words(f"<say-as interpret-as='cardinal'>{number}</say-as>", language) == expected
    assert words("<say-as interpret-as='ordinal'>3</say-as>", "fr") == "troisième"
    with pytest.raises(TextError, match="a date of <say-as> is English; in German write it"):
        words("<say-as interpret-as='date'>2026-11-28</say-as>", "de")


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        (
            "<speak>\n<foo/></speak>",
            "line 2, column 1",
            "<foo> is unknown; known: speak, p, s, break",
        ),
        ("<speak>a</spea>", "line 1", "this is not XML (mismatched tag)"),
        ("<speak>a", "line 1", "this is not XML (no element found)"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><speak>&b;</speak>", "line 1", "a DTD is not read"),
        (
            "<?xml version='1.0'?>\n<!DOCTYPE speak SYSTEM 'file:///x'><speak/>",
            "line 2",
            "a DTD is not",
        ),
        ("<speak>&nbsp;</speak>", "line 1, column 8", "undefined entity"),
        ("<speak>" + "<p>" * 40, "line 1, column 101", "nested more than 32 deep"),
        ("<speak><speak/></speak>", "line 1, column 8", "outermost"),
        ("<speak><break time='soon'/></speak>", "line 1, column 8", "give 700ms or 1.5s"),
        ("<speak><break strength='big'/></speak>", "line 1, column 8", "known: none, x-weak"),
        ("<speak><prosody rate='9'>a</prosody></speak>", "line 1, column 8", "give 50% to 200%"),
        ("<speak><voice>a</voice></speak>", "line 1, column 8", 'has no name="…"'),
        (
            "<speak><sub alias='b'><p>a</p></sub></speak>",
            "line 1, column 23",
            "which holds text only",
        ),
        ("<speak><say-as>a</say-as></speak>", "line 1, column 8", "known: characters, cardinal"),
        ("<speak><say-as interpret-as='x'>a</say-as></speak>", "line 1", "known: characters"),
        ("<speak><say-as interpret-as='date'>99/99</say-as></speak>", "line 1", "is no date"),
        ("<speak><say-as interpret-as='time'>soon</say-as></speak>", "line 1", "is no time"),
    ],
)
def test_an_error_has_the_place_and_what_is_known(text, place, problem):
    with pytest.raises(TextError) as caught:
        read(text, markup=True)
    assert str(caught.value).startswith(place) and problem in str(caught.value)


def test_what_has_no_effect_is_remarked_once():
    made = script("<prosody pitch='high'>a</prosody><prosody pitch='low' rate='slow'>b</prosody>")
    assert made.remarks == ("pitch of <prosody> has no effect; rate has",)


@given(st.lists(st.text(CHARACTERS, max_size=20), max_size=6))
def test_every_word_is_read_once_in_order(texts):
    inner = "<p>".join(f"{escape(text)}<break/>" for text in texts) + "</p>" * (len(texts) - 1)
    made = script(inner)
    expected = "\n".join(texts).split()
    assert made.text.split() == made.written.split() == expected


def test_without_the_option_it_is_text():
    text = "<speak>a</speak>"
    assert read(text).text == text
