"""The recipe of pico, where no teacher is needed: codes, training forward, packing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from helpers.common import assert_close
from helpers.t3 import looking, say_all
from tokenizers import Tokenizer

from chatterbox_opt.checkpoints import random_weights
from chatterbox_opt.engine import decode
from chatterbox_opt.models.t3 import decode_state
from chatterbox_opt.models.t3.convert import t3_from_upstream
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.sampling import Sampling
from training.pico import (
    codes,
    pack,
    sound,
    teacher,
    texts,
    train_flow,
    train_t3,
    training,
    written,
)
from training.pico.design import SHAPES, tokenizer
from training.pico.utterances import Utterance


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    used = torch.tensor([5, 90, 700, 701, 6000, SHAPES.t3.stop_speech])
    return train_t3.Reader(used)


def spoken(text="Hello, world.", said=(5, 700, 90, 6000, 701, 5)) -> Utterance:
    words = np.array([0, 0, 0, 1, 1, 1], dtype=np.uint8)
    return Utterance(text, 0.5, np.array(said, dtype=np.int16), words)


def test_every_symbol_has_its_own_number_and_fits():
    assert len(set(codes.SYMBOLS)) == len(codes.SYMBOLS) <= codes.BASE
    found = codes.symbols_of("həlˈO, wˈɜɹld.")
    assert [codes.SYMBOLS[i] for i, _, _ in found] == list("həl") + [
        "ˈO",
        ",",
        " ",
        "w",
        "ˈɜ",
    ] + list("ɹld.")
    assert [word for _, word, _ in found] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert sum(width for _, _, width in found) == len("həlˈO, wˈɜɹld.")


def test_a_code_is_two_phones_and_eight_digits():
    frames = np.repeat(np.arange(10), 2)  # ten symbols of 25 ms
    found = codes.codes_of(frames)
    assert len(found) == 6  # 250 ms are six codes and a bit
    assert found[0] == codes.BASE * 0 + 1
    digits = codes.digits(found)
    assert digits.max() <= 2
    assert ((digits * 3 ** np.arange(8)).sum(1) == found).all()


def test_speakers_have_vectors_of_the_encoders_kind():
    one, other = (teacher.draw_speaker(np.random.default_rng(i)) for i in (1, 2))
    voice = teacher.voice_vector(one, 256)
    assert voice.min() >= 0 and np.linalg.norm(voice) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(voice, teacher.voice_vector(other, 256), atol=0.01)
    many = np.stack(
        [teacher.x_vector(teacher.draw_speaker(np.random.default_rng(i)), 192) for i in range(300)]
    )
    assert abs(many.mean()) < 0.1 and abs(many.std() - 1) < 0.1


def test_evaluation_sentences_are_kept_out():
    banned = texts.held_out()
    assert len(banned) > 650
    assert texts.letters("The kettle is boiling, so would you like a cup of tea?") in banned


def test_what_is_written_is_learned_in_words():
    rng = np.random.default_rng(0)
    made = [written.sentence(rng) for _ in range(400)]
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z',; -]*[A-Za-z.?!]+", text) for text in made)
    assert len(set(made)) > 380
    assert {"one", "eleven", "twelve", "thirteen", "thirty", "hundred", "thousand", "third"} <= {
        word for text in made for word in re.split(r"[^a-z]+", text.lower())
    }


def test_patterns_are_not_taken_from_the_evaluation():
    """No three words in a row in common: learning them by heart would be no reading."""

    def threes(text: str) -> set[tuple[str, ...]]:
        words = texts.letters(text).split()
        return set(zip(words, words[1:], words[2:], strict=False))

    lines = [line for f in texts.SENTENCES.glob("*.txt") for line in f.read_text().splitlines()]
    asked = set().union(*map(threes, lines))
    for pattern in written.PATTERNS:
        for piece in re.split(r"\{\w+\}", pattern):
            assert not threes(piece) & asked, pattern


def test_a_booming_syllable_is_evened_out():
    time = np.arange(3 * 24000) / 24000
    quiet, loud = 0.08, 0.6
    wave = np.where((time > 1) & (time < 1.3), loud, quiet) * np.sin(2 * np.pi * 110 * time)
    wave = wave.astype(np.float32)
    even = sound.evened(wave)
    assert np.array_equal(even[:20000], wave[:20000]), "what is not above the limit is as it was"
    rise = 20 * np.log10(np.abs(even[26000:30000]).max() / 10 ** (sound.LIMIT / 20) / 2**0.5)
    before = 20 * np.log10(loud / 10 ** (sound.LIMIT / 20) / 2**0.5)
    assert abs(rise - before / sound.RATIO) < 0.5


def test_training_runs_the_decoder_that_speaks(reader):
    """Teacher forcing in a padded batch gives the logits of the package's own loop."""
    reading = Tokenizer.from_str(json.dumps(tokenizer()))
    short = train_t3.example(spoken(), reading)
    long = train_t3.example(spoken("Hello, world and everybody else."), reading)
    batch = train_t3.Batch([short, long], np.random.default_rng(0), noisy=False)
    with torch.no_grad():
        hidden, guide = reader(batch)
        logits = reader.logits(hidden)
    assert guide > 0
    plain = reader.folded().eval()
    for row, e in enumerate((short, long)):
        prompt = Prompt(
            torch.from_numpy(e.ids[1:-1]),
            batch.speakers[row : row + 1],
            batch.prompts[row : row + 1],
        )
        knobs = Sampling(cfg_weight=0.0, temperature=0.0)
        script = tuple(int(c) for c in e.codes)
        said = decode_state.DecodeRequest(
            prompt, knobs, torch.Generator(), lambda count: None, script
        )
        given, plain_step = [], decode.eager_step(plain.step)

        def step(held, *args, seen=given, plain_step=plain_step, **more):
            plain_step(held, *args, **more)
            seen.append(held.logits.clone())

        say_all(plain, [said], rows_per_seq=1, way=looking(step=step))
        mine = logits[row * 7 + 1 : row * 7 + 7, : len(reader.used)]  # after each of six codes
        theirs = torch.cat(given)[:, reader.used]
        assert_close(mine, theirs, atol=1e-4)


def test_the_rest_is_one_class_as_likely_as_all_of_it(reader):
    """The folded head's softmax over all codes is the softmax that was trained."""
    hidden = torch.randn(3, SHAPES.t3.width)
    with torch.no_grad():
        small = reader.logits(hidden).softmax(-1)
        whole = reader.folded().head(hidden).softmax(-1)
    assert_close(whole[:, reader.used], small[:, :-1], atol=1e-6)
    assert reader.classes(torch.tensor([90, 91])).tolist() == [1, len(reader.used)]


def test_wrong_codes_are_codes(reader):
    said = np.array([5, 90, 700, 6000])
    wrong = train_t3._wrong(said, np.array([True, True, False, True]), np.random.default_rng(0))
    assert len(wrong) == 3 and (wrong >= 0).all() and (wrong < 6561).all()


def test_muon_makes_updates_orthogonal():
    made = training.orthogonal(torch.randn(48, 16, generator=torch.Generator().manual_seed(0)))
    singular = torch.linalg.svdvals(made)
    assert singular.min() > 0.5 and singular.max() < 1.4


def test_training_goes_on_where_it_stopped(tmp_path, capsys):
    target = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))

    def run(minutes: float) -> torch.nn.Module:
        net = torch.nn.Linear(4, 4)
        training.train(
            "x", net, lambda rng: {"loss": (net.weight - target).pow(2).mean()},
            minutes=minutes, rate=1e-3, out=tmp_path, inner=[net.weight],
        )  # fmt: skip
        return net

    first = run(0.01)
    steps = torch.load(tmp_path / "x.pt", weights_only=True)["step"]
    again = training.trained("x", torch.nn.Linear(4, 4), tmp_path)
    assert torch.equal(again.weight, first.weight)
    run(0.02)
    assert torch.load(tmp_path / "x.pt", weights_only=True)["step"] > steps
    assert "loss" in capsys.readouterr().out


def test_packing_is_loading_backwards(reader):
    plain = reader.folded().state_dict()

    def convert(theirs):
        return t3_from_upstream(theirs, SHAPES.t3, torch.float64).state_dict()

    theirs = pack.backwards(convert, random_weights.t3_template(SHAPES.t3), plain)
    back = t3_from_upstream(theirs, SHAPES.t3, torch.float32).state_dict()
    assert all(torch.equal(back[name], plain[name]) for name in plain)
    painter = train_flow.Painter()
    state = painter.folded().state_dict()
    template = random_weights.upstream_flow(SHAPES.flow).state_dict()
    packed = pack.backwards(pack.flow_to_ours, template, state)
    assert set(packed) == set(template)
    again = pack.flow_to_ours(packed)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_half_precision_refuses_what_does_not_fit():
    with pytest.raises(OverflowError, match="big"):
        pack.half({"big": torch.tensor([1e6])})
