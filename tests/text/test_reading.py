"""What is dropped of a text is counted and named; what is read is never glued to another word."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from num2words import num2words

from chatterbox_opt.errors import TextError
from chatterbox_opt.text.english import normalizer, number_words, quantities
from chatterbox_opt.text.english.normalizer import read_english
from chatterbox_opt.text.english.reading import Dropped, Reading

MARKUP = [
    # written => read => dropped, separated by |
    (line + " ").split(" => ")
    for line in """
Tom &amp; Jerry&nbsp;ran. => Tom and Jerry ran. =>
&lt;3 &#39;x&#39; &#x2014; &amp;amp; &quot;y&quot; => less than three 'x' - and "y" =>
A &amp B, AT&T, &unknown; => A and B, A T and T, and unknown; =>
https://www.example.com/a?b=c#d => example dot com slash a => ?b=c#d
See http://localhost:8080/a_b. => See localhost colon eight thousand and eighty slash a underscore b. =>
(www.example.com), HTTPS://EXAMPLE.ORG! => (example dot com), example dot org! =>
Is it example.com/x%20y? Yes. => Is it example dot com slash x y? Yes. =>
<me+you@example.co.uk> or mailto:a@b.org?subject=hi => me plus you at example dot co dot uk or a at b dot org => ?subject=hi
call foo_bar() or snake_case, CamelCase => call foo bar or snake case, CamelCase =>
`pip install` and ``x`` => pip install and x =>
**bold**, *it*, __init__, _it_, ~~no~~ => bold, it, init, it, no =>
[the link](https://x.com/y "t") ![a dog](dog.png) => the link a dog => https://x.com/y|dog.png
. .venv/bin or .env => dot venv bin or dot env =>
an array[i](j) => an array(i)(j) =>
H<sub>2</sub>O is <b class="x">un</b>usual<br/>now => H two O is unusual now => <br/>|<sub>|</sub>|<b class="x">|</b>
if a <b and c> d, <your name> => if a b and c d, your name =>
<!-- a note --> Hello <script>x = 1</script> => Hello => <!-- a note -->|<script>x = 1</script>
Since 2019<sup>3</sup> it is so.<sup><a href="#n">1</a></sup> Yes<sup>[2]</sup>. => Since twenty nineteen it is so. Yes. => <sup><a href="#n">1</a></sup>|<sup>[2]</sup>|³
It is.[^1] Or is it?[^note] => It is. Or is it? => [^1]|[^note]
Fine :) or :P => Fine or => :P
She said спасибо and 谢谢 to the waiter. => She said and to the waiter. => спасибо|谢谢
"Да," he said, "(你好)." Привет. So. => he said. So. => Да|你好|Привет
Нью-Йорк, हिन्दी, xπy => x y => Нью-Йорк|हिन्दी|π
It is so.¹² word² => It is so. word => ¹²|²
""".strip().splitlines()
]


@pytest.mark.parametrize(("written", "words", "dropped"), MARKUP)
def test_markup_and_other_scripts(written, words, dropped):
    reading = read_english(written)
    assert reading.text == words
    assert [run.text for run in reading.dropped] == [
        run for run in dropped.strip().split("|") if run
    ]


PARAGRAPHS = {
    "# Steven Erikson\nFive riders\ndrew rein.": "Steven Erikson\n\nFive riders drew rein.",
    "Title\n=====\nText.\r\n\r\nMore.": "Title\n\nText.\n\nMore.",
    "He left.\n* * *\nShe came.\n\n***\n\nEnd.": "He left.\n\n---\n\nShe came.\n\n---\n\nEnd.",
    "Buy:\n- eggs\n- milk\n\n> Quoted\n> text.": "Buy: eggs, milk\n\nQuoted text.",
    "Scores:\n- 10\n- 20\n* 30 points": "Scores: ten, twenty, thirty points",
    "# One #\nTwo.[^1]\n\n[^1]: A note.": "One\n\nTwo.\n\nA note.",
    "```python\nprint(x)\n```\nDone.": "print(x)\n\nDone.",
    "<h1>One</h1><p>Two.</p><hr>Three.": "One\n\nTwo.\n\n---\n\nThree.",
    "One.\n\nПривет.\n\nTwo.": "One.\n\nTwo.",  # dropped, not a scene break
    "| A | B |\n|---|:-:|\n| one | two |": "A, B\n\none, two",
    "One.\u2029Two.\u2028Three.": "One.\n\nTwo. Three.",
}


@pytest.mark.parametrize(("written", "words"), PARAGRAPHS.items())
def test_paragraphs_headings_and_scene_breaks_stay_apart(written, words):
    assert read_english(written).text == words


def test_the_summary_counts_all_and_names_some():
    reading = read_english("She said спасибо and 谢谢 to the waiter.")
    assert reading.summary == "2 words dropped, which this model cannot read: 'спасибо', '谢谢'"
    assert reading.dropped[0] == Dropped("спасибо", "another script")
    many = read_english("Say " + "да " * 8)
    assert many.summary.startswith("8 words dropped, ") and many.summary.endswith(" and 3 more")
    long = read_english("See x.com/?" + "a" * 1000)
    assert long.summary.startswith("1 word dropped, ") and len(long.summary) < 120


def test_a_text_of_which_nothing_is_left_is_an_error_that_names_it():
    with pytest.raises(TextError, match="no word that this model can read .'你好', '谢谢'."):
        read_english("你好 谢谢")


# every word that a rule may write
WRITTEN = {
    word
    for module in (normalizer, number_words, quantities)
    for name, table in vars(module).items()
    if name.isupper() and isinstance(table, dict)
    for entry in table.values()
    if isinstance(entry, str)
    for noun in entry.split()
    for word in {noun, number_words.plural(noun), noun.capitalize()}
}
WRITTEN |= set(re.findall(r"[A-Za-z]+", normalizer._YEAR + normalizer._WEEK + normalizer._PARTS))
for number in [*range(101), 1000, 10**6, 10**9, 10**12]:
    for to in ("cardinal", "ordinal"):
        for word in re.findall("[a-z]+", num2words(number, to=to)):
            WRITTEN |= {word, number_words.plural(word), word.capitalize()}
OTHERS = """
point oh o clock M P A U T C to of the hundred Net sharp dot hashtag number Number per squared cubed
power less greater than or equal not about times divided by plus minus infinity square root section
approximately at colon slash dash underscore tilde halves twenties thirties forties fifties sixties
seventies eighties nineties micro D J I V X L alpha
"""
WRITTEN |= set(OTHERS.split())
# "jj" and the like occur in no word of a rule; the others belong to rules
PIECES = st.sampled_from(
    [*"0123456789", *"¹²³⁻₂①½Ⅳ٣", *" .,:;!?'\"()-/", *" $£€%°#@&+=<>^~*_|\\[]{}`", *"  \n"]
    + ["jj", "jjj", "Jj", "JJ", "я", "яя", "谢", "é", "ß", "α", "\u0301", "\u200b", "km", "pm"]
    + ["May", "st", "th", "II", "Mr", "No", "T", "Z", "http://", "&amp;", "<b>", "**", ".com", "Ch"]
)


@given(st.lists(PIECES, max_size=14).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_word_is_glued_to_what_a_rule_writes(text):
    try:
        reading = read_english(text)
    except TextError:
        return
    for word in re.findall("[A-Za-z]+", reading.text):
        parts = re.fullmatch(
            "(?i:jj|jjj|e|ss|km|pm|may|st|th|ii|mr|no|t|z|http|com|ch|b|x|iv)+", word
        )
        assert parts or word in WRITTEN, (text, reading)


@given(st.lists(PIECES, max_size=14).map("".join))
@settings(max_examples=300, deadline=None)
def test_every_letter_is_read_or_reported(text):
    try:
        reading = read_english(text)
    except TextError as error:
        assert not any(c in text for c in "0123456789jé") or "'" in str(error)
        return
    gone = "".join(run.text for run in reading.dropped)
    assert reading.text.lower().count("j") + gone.lower().count("j") >= text.lower().count("j")
    assert gone.count("я") == text.count("я") and gone.count("谢") == text.count("谢")
    assert reading.text or gone


def test_a_reading_is_a_value():
    assert Reading("a").replace(re.compile("b"), "c") == Reading("a")
    assert Reading("a1b").replace(re.compile(r"\d"), "one").text == "a one b"
