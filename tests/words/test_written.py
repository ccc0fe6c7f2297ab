"""Which written words are heard in which read ones."""

from __future__ import annotations

import pytest
from helpers.fuzz import examples, soon
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Lexicon
from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.engine import texts
from chatterbox_opt.script.reader import read
from chatterbox_opt.script.spans import Part, Script
from chatterbox_opt.words.written import english_words, written_words

PICO = ModelConfig(needs_text_normalization=True)
LEXICON = Lexicon.of({"SQL": "see quell", "API": "ay pee eye"})
both_models = pytest.mark.parametrize("config", [ModelConfig(), PICO], ids=["chatterbox", "pico"])


def heard(text: str, config: ModelConfig = PICO, **how) -> list[tuple[str, str]]:
    """Each written word with the words that are read for it.

    Args:
        how: as of ``read``.
    """
    script = read(text, **how)
    chunks = texts.script_chunks(script, config)
    found = texts.written_words(script, chunks, config)
    return [
        (word.text, " ".join(chunk.text.split()[word.first : word.last]))
        for chunk, words in zip(chunks, found, strict=True)
        for word in words
    ]


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("At 7:45 we left.", [("At", "At"), ("7:45", "seven forty five"), ("we", "we"), ("left.", "left.")]),
        ("Dr. Lee paid $5 for 12 km.", [("Dr.", "Doctor"), ("Lee", "Lee"), ("paid", "paid"), ("$5", "five dollars"), ("for", "for"), ("12", "twelve"), ("km.", "kilometers.")]),
        ("1,234 5", [("1,234", "One thousand two hundred and thirty-four"), ("5", "five.")]),
        ("It is — well, привет — over.", [("It", "It"), ("is", "is,"), ("well,", "well,,"), ("over.", "over.")]),
        ("The BBC said so.", [("The", "The"), ("BBC", "B B C"), ("said", "said"), ("so.", "so.")]),
        ("BBC NPR DVDs CDs", [("BBC", "B B C"), ("NPR", "N P R"), ("DVDs", "D V D's"), ("CDs", "C D's.")]),
        ("STOP THE FBI", [("STOP", "STOP"), ("THE", "THE"), ("FBI", "F B I.")]),
        ("Yes & no", [("Yes", "Yes"), ("&", "and"), ("no", "no.")]),
        ("It cost $5 million.", [("It", "It"), ("cost", "cost"), ("$5", "five"), ("million.", "million dollars.")]),
    ],
)  # fmt: skip
def test_numbers_abbreviations_and_dropped_words(text, pairs):
    assert heard(text) == pairs


def test_models_that_read_what_is_written():
    text = "“Well…so it is”, he said -- don't; 7:45!"
    words = heard(text, ModelConfig())
    assert [word for word, _ in words] == [w for w in text.split() if any(c.isalnum() for c in w)]
    assert dict(words)["“Well…so"] == '"Well, so'


# --- what a lexicon or markup respells -------------------------------------------------------------


@both_models
@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("Our SQL API is here.", [("Our", "Our"), ("SQL", "see quell"), ("API", "ay pee eye"), ("is", "is"), ("here.", "here.")]),
        ("Our [say:see quell]SQL[/say] [say:ay pee eye]API[/say] is here.", [("Our", "Our"), ("SQL", "see quell"), ("API", "ay pee eye"), ("is", "is"), ("here.", "here.")]),
        ("[say:no no]no[/say] no", [("no", "No no"), ("no", "no.")]),
        ("<speak><sub alias='the World Wide Web Consortium'>W3C</sub>. <say-as interpret-as='characters'>B2</say-as>, please.</speak>", [("W3C.", "The World Wide Web Consortium."), ("B2,", "B two,"), ("please.", "please.")]),
    ],
)  # fmt: skip
def test_respelled_words_next_to_each_other_keep_their_own_words(text, pairs, config):
    assert heard(text, config, markup=True, lexicon=LEXICON) == pairs


@both_models
@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("SQL's (SQL-API) un[say:fixed]FIX[/say]ed", [("SQL's", "See quell's"), ("(SQL-API)", "(see quell-ay pee eye)"), ("unFIXed", "unfixeded.")]),
        ("SQL[pause:1s]API", [("SQL", "See quell."), ("API", "Ay pee eye.")]),
        ("<speak>A<sub alias=' to '>-</sub>B <sub alias='less than'>&lt;</sub> C</speak>", [("A-B", "A to B"), ("<", "less than"), ("C", "C.")]),
        ("Oh [say:love]❤[/say] [say:no love]♥[/say] no", [("Oh", "Oh"), ("❤", "love"), ("♥", "no love"), ("no", "no.")]),
        ("no [say:no no][/say] [say:yes]no[/say]", [("no", "No"), ("no", "yes.")]),
        ("[say:the very good mourning]good morning[/say] SQL", [("good", "The very good"), ("morning", "mourning"), ("SQL", "see quell.")]),
    ],
)  # fmt: skip
def test_parts_of_words_signs_and_phrases_are_respelled(text, pairs, config):
    assert heard(text, config, markup=True, lexicon=LEXICON) == pairs


def test_a_sign_that_only_the_model_has_a_name_for_is_a_respelling_too():
    expected = [("No", "No"), ("and", "and"), ("SQL", "see quell.")]
    assert heard("No [say:&]and[/say] SQL", markup=True, lexicon=LEXICON) == expected


def test_a_respelling_that_the_model_reads_in_other_words_keeps_to_its_word():
    text = "[say:FBI]Bureau[/say] [say:CIA]Agency[/say] [say:7:45]then[/say] [say:5 km]far[/say]."
    expected = [("Bureau", "F B I"), ("Agency", "C I A"), ("then", "seven forty five"), ("far.", "five kilometers.")]  # fmt: skip
    assert heard(text, markup=True) == expected


WORDS = ["no", "yes", "see", "quell", "ay", "pee"]  # few: most of them are also heard for another
READ = ["BBC", "FBI's", "7:45", "Lee-BBC"]  # as words, by the built-in model
plain = st.sampled_from(WORDS)
aliases = st.lists(st.sampled_from(WORDS + READ), min_size=1, max_size=4).map(" ".join)
marks = st.sampled_from([" ", ", ", "; ", "! ", " [pause:100ms]", "\n\n"])


@both_models
@examples(60)
@given(
    lexicon=st.dictionaries(plain, aliases, max_size=4),
    says=st.lists(st.tuples(plain, st.none() | aliases, marks), min_size=1, max_size=12),
)
def test_a_respelled_word_has_exactly_the_words_of_its_own_alias(lexicon, says, config):
    text = "".join((f"[say:{a}]{w}[/say]" if a else w) + mark for w, a, mark in says)
    found = heard(text, config, markup=True, lexicon=Lexicon.of(lexicon))
    # a word whose alias is itself is one that is not respelled
    read_as = [a if a not in (None, w) else lexicon.get(w, w) for w, a, _ in says]
    if config.needs_text_normalization:
        read_as = [" ".join(map(english_words, words.split())) for words in read_as]
    assert [_bare(word) for word, _ in found] == [w for w, _, _ in says]
    assert [_bare(words) for _, words in found] == [_bare(words) for words in read_as]


def _bare(words: str) -> str:
    """In small letters, without marks at the ends of words."""
    return " ".join(word.strip(",;!.").lower().replace(":", ",") for word in words.split())


# --- any texts -------------------------------------------------------------------------------------

pieces = st.text(alphabet="ab1 -&é", max_size=6)


@examples(100)
@given(st.lists(st.one_of(st.builds(Part, pieces, pieces), pieces.map(lambda p: Part(p, p)))))
def test_any_parts_have_words_in_order_that_do_not_overlap(parts):
    chunks = "".join(part.text for part in parts).split(" a")
    rest = iter("".join(part.written for part in parts).split())
    for chunk, words in zip(chunks, written_words(parts, chunks), strict=True):
        ends = [0]
        for word in words:
            assert word.text in rest, "each once, in order"
            assert ends[-1] <= word.first < word.last <= len(chunk.split())
            ends.append(word.last)


words_of_texts = st.lists(
    st.one_of(
        st.sampled_from(["the", "Dr.", "cat", "—", "$5.20", "7:45", "and", "привет", "NASA", "&", "3/4", "2026-11-28", "well-known", "don't", "***", "(so", "he)", "1,234,567", "www.example.com/a", "half.", "Stop!", "日本"]),
        st.text(alphabet="abc,.!?'’“$0123456789-é", min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=60,
)  # fmt: skip


@examples(100)
@given(words_of_texts, st.booleans())
def test_every_read_word_has_one_owner_and_all_are_in_order(words, built_in):
    text = " ".join(words)
    if not any(c.isascii() and c.isalnum() for c in text):
        text += " a"
    config = PICO if built_in else ModelConfig()
    chunks = texts.chunks(text, config)
    found = texts.written_words(Script.of(text), chunks, config)
    _check(text, [chunk.text for chunk in chunks], found)


@examples(100)
@given(words_of_texts, words_of_texts)
def test_of_any_two_texts_too(one, other):
    """What a model reads may have nothing in common with its text."""
    chunks = [" ".join(other[:20]), " ".join(other[20:])]
    _check(" ".join(one), chunks, written_words(_parts(" ".join(one)), chunks))


def _parts(text: str) -> list[Part]:
    """Of a text without markup."""
    return Script.of(text).parts


def _check(text: str, chunks: list[str], found) -> None:
    """Words are a subsequence of the text; their spans are disjoint, rise, and cover what is read
    but for the rest of a word that began in the chunk before."""
    rest = iter(text.split())
    begun = False
    for chunk, words in zip(chunks, found, strict=True):
        end, read = 0, chunk.split()
        for word in words:
            assert word.text in rest, "each once, in order"
            assert end <= word.first < word.last <= len(read)
            between = [w for w in read[end : word.first] if any(c.isalnum() for c in w)]
            assert not between or (begun and end == 0)
            end, begun = word.last, True
        last = [w for w in read[end:] if any(c.isalnum() for c in w)]
        assert not last or (begun and not words)


def test_a_book_takes_seconds_and_not_minutes():
    line = "In 1984, Dr. Lee paid $5 for the 2nd of 3 old radios & left at 7:45. Привет, he said. "
    text = line * 2000  # 34,000 words
    chunks = texts.chunks(text, ModelConfig())
    changed = [
        " ".join("x1984x" if "1984" in w else w for w in chunk.text.split()) for chunk in chunks
    ]
    with soon():
        found = written_words(_parts(text), changed)
    assert sum(map(len, found)) == sum(any(c.isalnum() for c in w) for w in text.split())


def test_a_book_of_respelled_words_takes_seconds_too():
    script = read("Our SQL API, [say:no no]no[/say] no! " * 2000, markup=True, lexicon=LEXICON)
    chunks = texts.script_chunks(script, ModelConfig())
    with soon():
        found = texts.written_words(script, chunks, ModelConfig())
    assert sum(map(len, found)) == 10_000


def test_what_is_dropped_in_one_piece_moves_nothing():
    words = [f"a{i}b" for i in range(100)]
    for count in (10, 200, 1500):
        text = " ".join([*words[:50], *["gone"] * count, *words[50:]])
        [found] = written_words(_parts(text), [" ".join(words)])
        assert [word.text for word in found] == words
        assert all(word.last == word.first + 1 for word in found)


def test_single_words_are_read_as_the_built_in_model_does():
    assert english_words("$5") == "five dollars"
    assert english_words("привет") == ""
