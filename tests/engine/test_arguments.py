"""Arguments of a wrong type are our own errors with a remedy, raised before any work."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from helpers.common import SAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt import Guard, Request, Sampling
from chatterbox_opt.errors import ChatterboxOptError, InputError, TextError, VoiceError
from chatterbox_opt.sampling import WHOLE_NUMBERS
from chatterbox_opt.utils.arguments import name_or_path, seconds_to_wait, shown

FIELDS = tuple(Sampling.__dataclass_fields__)
NOT_NUMBERS = ("7", "hot", True, np.bool_(True), float("nan"), np.float32("nan"), b"7", [7], {}, 1j,
               np.array([1, 2]), object(), Sampling)  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_no_number_is_an_input_error_with_the_fields_name(name):
    for value in NOT_NUMBERS:
        with pytest.raises(InputError, match=rf"^{name} is .*; give a (whole )?number") as caught:
            Sampling(**{name: value})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 120


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_a_fraction_where_a_whole_number_belongs(name):
    for value in (1.5, 7.0, np.float64(7), Fraction(7)):
        with pytest.raises(InputError, match=f"^{name} is .*; give a whole number"):
            Sampling(**{name: value})


def test_only_the_seed_and_the_steps_may_be_none():
    assert Sampling(seed=None).seed is None
    for name in set(FIELDS) - {"seed", "cfm_steps"}:
        with pytest.raises(InputError, match=f"^{name} is None; give a"):
            Sampling(**{name: None})


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", 2**63), ("top_k", 10**30), ("temperature", 10**400), ("top_p", 0),
     ("temperature", float("inf")), ("cfg_weight", np.float32(11)), ("max_tokens", np.int8(0))],
)  # fmt: skip
def test_a_number_out_of_range_names_the_range(name, value):
    with pytest.raises(InputError, match=f"^{name} is .*; give a value from "):
        Sampling(**{name: value})


def test_numbers_of_numpy_are_numbers():
    sampling = Sampling(
        seed=np.int64(7), temperature=np.float32(0.5), top_k=np.uint8(3), cfg_weight=np.int32(1)
    )
    assert sampling == Sampling(seed=7, temperature=0.5, top_k=3, cfg_weight=1)
    chosen = [name for name in FIELDS if sampling.is_chosen(name)]
    assert {type(getattr(sampling, name)) for name in chosen} == {int, float}
    assert type(Sampling(temperature=1).temperature) is int, "plain numbers stay as they are"


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FIELDS),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
              st.binary(max_size=9), st.complex_numbers(), st.fractions(), st.decimals(),
              st.lists(st.integers(), max_size=2)),
)  # fmt: skip
def test_any_value_is_taken_or_is_an_input_error(name, value):
    try:
        taken = getattr(Sampling(**{name: value}), name)
    except InputError as error:
        assert str(error).startswith(f"{name} is ") and "\n" not in str(error)
    else:
        expected = None if value is None else type(taken)(value)  # of a fraction
        assert taken == expected and not isinstance(value, (str, bool))


@pytest.mark.parametrize("text", [None, 5, b"x", ["a", "b"], Path("a.txt"), bytearray(b"x"), True])
def test_a_text_that_is_no_str(text):
    with pytest.raises(TextError, match="^the text is .*; (give a str|decode it)"):
        Request("a", text)


@pytest.mark.parametrize(
    "voice", [5, 0.5, b"ada", True, ["ada"], ("ada",), Sampling(), {"voice": "ada"}]
)
def test_a_voice_that_is_none(voice):
    with pytest.raises(VoiceError, match="^voice is .*; give a Voice, a voice's name or a path"):
        Request("a", "Hello.", voice)


def test_a_request_takes_names_and_paths_and_only_a_sampling():
    for voice in (None, "ada", "a.wav", Path("a.wav"), PurePosixPath("ada")):
        assert Request("a", "Hello.", voice).voice == voice
    for sampling in (None, 7, {"seed": 7}, Sampling):
        with pytest.raises(InputError, match="^sampling is .*; give a Sampling"):
            Request("a", "Hello.", None, sampling)


def test_a_guard_takes_a_number_of_retries():
    assert Guard(np.int64(3)) == Guard(3)
    for retries in (-1, 1.5, "2", None, True):
        with pytest.raises(InputError, match="^retries is "):
            Guard(retries)


def test_timeouts():
    assert seconds_to_wait("timeout", None) is None
    assert seconds_to_wait("timeout", np.float32(0.5)) == 0.5
    assert seconds_to_wait("timeout", float("inf")) is None
    assert seconds_to_wait("timeout", 2 * threading.TIMEOUT_MAX) is None
    for wrong in ("1", float("nan"), True):
        with pytest.raises(InputError, match="^timeout is"):
            seconds_to_wait("timeout", wrong)


def test_names_and_paths():
    assert name_or_path("model", Path("a/b")) == str(Path("a/b"))
    for wrong in (None, 5, b"pico"):
        with pytest.raises(InputError, match="^model is .*; give a name or a path"):
            name_or_path("model", wrong)


def test_a_long_value_is_shown_in_short():
    for value in (list(range(10**5)), "x" * 10**5, np.zeros(10**5), 10**300):
        assert len(shown(value)) < 80 and "\n" not in shown(value)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda e: e.synthesize(None), TextError),
        (lambda e: e.synthesize(b"x"), TextError),
        (lambda e: e.synthesize(5), TextError),
        (lambda e: e.synthesize("Hello.", 5), VoiceError),
        (lambda e: e.synthesize("Hello.", Sampling(seed=1)), VoiceError),
        (lambda e: e.synthesize("Hello.", None, {"seed": 1}), InputError),
        (lambda e: e.synthesize("Hello.", None, 0), InputError),
        (lambda e: e.synthesize("Hello.", None, None, 5), InputError),
        (lambda e: e.stream(None), TextError),
        (lambda e: e.stream("?!"), TextError),
        (lambda e: e.pieces("Hello.", b"ada"), VoiceError),
        (lambda e: e.pieces("Hello.", "nobody"), VoiceError),
        (lambda e: e.pieces("Hello.", guard=2), InputError),
        (lambda e: e.speech_tokens(None), TextError),
        (lambda e: e.warm_up(None), TextError),
        (lambda e: e.warm_up(["a", "b"]), TextError),
        (lambda e: e.warm_up(voice=5), VoiceError),
        (lambda e: e.voice(5), VoiceError),
        (lambda e: e.voice(object()), VoiceError),
        (lambda e: e.synthesize("Hello.", Request), VoiceError),
        (lambda e: e.voice(b"ada"), VoiceError),
        (lambda e: e.submit("Hello."), InputError),
        (lambda e: e.submit(Request("a", "Hello."), timeout="1"), InputError),
        (lambda e: e.submit(Request("a", "Hello."), guard=True), InputError),
        (lambda e: e.batch(None), InputError),
        (lambda e: e.batch([], guard=2), InputError),
        (lambda e: next(e.batch("Hello.")), InputError),
        (lambda e: list(e.batch([("a", "Hello.")])), InputError),
        (lambda e: type(e).load(None), InputError),
        (lambda e: type(e).load("pico", 5), InputError),
        (lambda e: type(e).load("pico", store="voices"), InputError),
        (lambda e: type(e).load("pico", weights="weights"), InputError),
        (lambda e: type(e).load("pico", plan="cpu"), InputError),
        (lambda e: type(e).load("pico", overrides="int8"), InputError),
    ],
)
def test_every_call_of_the_engine_refuses_before_any_work(engine, monkeypatch, call, kind):
    monkeypatch.setattr(engine._loop._scheduler, "step", lambda: pytest.fail("it has begun"))
    with pytest.raises(kind) as caught:
        call(engine)
    assert isinstance(caught.value, ChatterboxOptError) and "\n" not in str(caught.value)


def test_names_paths_and_voices_are_voices_everywhere(load, monkeypatch):
    engine = load()
    own, short = engine.voice(), Sampling(seed=1, max_tokens=6, cfm_steps=1)
    voice = replace(own, speaker=-own.speaker)
    known = {"anna": voice, str(SAMPLE): voice}  # encoders take long
    monkeypatch.setattr(engine._voices, "voice", lambda source: known[os.fspath(source)])
    assert engine.voice(voice) is voice
    expected = engine.synthesize("Hello.", voice, short).samples
    for source in ("anna", Path("anna"), str(SAMPLE), SAMPLE):
        request = Request("a", "Hello.", source, short)
        waves = [
            engine.synthesize("Hello.", source, short).samples,
            *engine.stream("Hello.", source, short),
            *(piece.samples for piece in engine.pieces("Hello.", source, short)),
            *(result.audio().samples for result in engine.batch([request])),
            engine.submit(request).result().audio().samples,
        ]
        assert len(waves) == 5
        assert all(np.array_equal(wave, expected) for wave in waves)
    tokens = [engine.speech_tokens("Hello.", source, short).tolist() for source in (voice, "anna")]
    assert tokens[0] == tokens[1]
    engine.warm_up("Hi.", voice=SAMPLE)
    engine.close()


def test_a_model_and_a_profile_may_be_paths(tiny, tmp_path, store):
    from chatterbox_opt import Engine

    (tmp_path / "mine.yaml").write_text("dtype: float32")
    with Engine.load(tiny, tmp_path / "mine.yaml", store=store, watermark=False) as loaded:
        assert loaded.plan.profile == str(tmp_path / "mine.yaml")
