"""Sampling parameters that depend on the model: its own where nobody chose, refused if absent."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle

import pytest
from chatterbox.mtl_tts import ChatterboxMultilingualTTS
from typer.testing import CliRunner

from chatterbox_opt import InputError, Request, Sampling
from chatterbox_opt.checkpoints import random_weights, registry
from chatterbox_opt.cli.application import app
from chatterbox_opt.cli.options import SamplingOptions
from chatterbox_opt.config.model_config import MULTILINGUAL, TURBO, ModelConfig
from chatterbox_opt.engine.sequence import Capacity
from chatterbox_opt.engine.serving.states import RequestStates
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.provider import EMOTIONS, sampling_for
from chatterbox_opt.sampling import for_model, seeded
from chatterbox_opt.voice import from_conditionals
from chatterbox_opt.voices.library import VoiceLibrary

KNOBS = ("cfg_weight", "exaggeration", "min_p")


@pytest.fixture(scope="module")
def turbo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "turbo"
    random_weights.make(directory, "tiny", 1, "turbo")
    return registry.locate(str(directory))


def of_turbo(sampling: Sampling) -> Sampling:
    return for_model(sampling, TURBO.t3.sampling_defaults, TURBO.t3.missing_knobs)


def test_a_model_has_its_own_defaults():
    own = of_turbo(Sampling(temperature=0.5))
    assert (own.top_k, own.top_p, own.min_p, own.cfg_weight) == (1000, 0.95, 0, 0)
    assert own.temperature == 0.5
    assert of_turbo(own) == own, "what is filled in is not refused"
    chosen = of_turbo(Sampling(top_k=7, top_p=1.0))
    assert (chosen.top_k, chosen.top_p) == (7, 1.0)
    t3 = ModelConfig().t3
    assert for_model(Sampling(), t3.sampling_defaults, t3.missing_knobs) == Sampling()


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("value", [0.5, 0.05, 0.7])
def test_a_knob_that_the_model_does_not_have_is_refused(knob, value):
    """Also if it is the default of other models: somebody set it."""
    with pytest.raises(InputError, match=f"{knob} is {value}, and this model has no {knob}; leave"):
        of_turbo(Sampling(**{knob: value}))
    of_turbo(Sampling(**{knob: 0}))  # off is what the model does


def test_defaults_stay_defaults_when_values_are_copied():
    copies = (
        seeded,
        copy.deepcopy,
        lambda sampling: pickle.loads(pickle.dumps(sampling)),
        lambda sampling: Sampling(**dataclasses.asdict(sampling)),
        lambda sampling: dataclasses.replace(sampling, temperature=0),
    )
    for copied in copies:
        assert of_turbo(copied(Sampling())).top_k == 1000
    values = dataclasses.asdict(Sampling())
    shown = json.dumps({name: values[name] for name in (*KNOBS, "top_p", "top_k", "max_tokens")})
    assert shown == (
        '{"cfg_weight": 0.5, "exaggeration": 0.5, "min_p": 0.05, "top_p": 1.0, "top_k": 0, '
        '"max_tokens": 1000}'
    ), "batch manifests have hashes of it"


def test_requests_get_the_models_own_values(turbo, store):
    voice = from_conditionals(turbo.conditionals)
    states = RequestStates(turbo.config, VoiceLibrary(turbo, store), None)
    state = states.of(Request("", "Hello.", voice), Capacity(1))
    assert state.sequences[0].sampling.top_k == 1000
    with pytest.raises(InputError, match="this model has no min_p"):
        states.of(Request("", "Hello.", voice, Sampling(min_p=0.1)), Capacity(1))


def test_an_option_is_chosen_and_its_absence_is_not():
    assert SamplingOptions().sampling() == Sampling()
    assert of_turbo(SamplingOptions().sampling()).top_k == 1000
    with pytest.raises(InputError, match="no exaggeration"):
        of_turbo(SamplingOptions(exaggeration=0.5).sampling())


@pytest.mark.parametrize(
    ("job", "options", "message"),
    [
        ("text,cfg_weight\nHello.,\nHello.,0.7\n", [], "row 3: cfg_weight is 0.7"),
        ("text\nHello.\n", ["--min-p", "0.05"], "row 2: min_p is 0.05"),
    ],
)
def test_a_job_is_refused_before_a_model_is_loaded(turbo, tmp_path, job, options, message):
    (tmp_path / "job.csv").write_text(job)
    arguments = ["batch", str(tmp_path / "job.csv"), "--out-dir", str(tmp_path / "out")]
    arguments += ["--model", str(turbo.directory), "--device", "cpu", *options]
    result = CliRunner().invoke(app, arguments)
    assert message in str(result.exception), result.output
    assert isinstance(result.exception, InputError)


def test_a_files_names_are_enough_to_refuse_a_knob(turbo, tmp_path, monkeypatch):
    monkeypatch.setattr(EngineSpec, "load", lambda self: pytest.fail("loaded"))
    for model in (str(turbo.directory), "turbo"):
        arguments = ["synth", "Hello.", "-o", str(tmp_path / "x.wav"), "--model", model]
        result = CliRunner().invoke(app, [*arguments, "--cfg-weight", "0.5"])
        assert "cfg_weight is 0.5, and this model has no cfg_weight" in str(result.exception)


def test_a_multilingual_model_has_upstreams_repetition_penalty():
    own = for_model(Sampling(), MULTILINGUAL.sampling_defaults, MULTILINGUAL.missing_knobs)
    upstream = inspect.signature(ChatterboxMultilingualTTS.generate).parameters
    for name in ("repetition_penalty", "min_p", "top_p", "exaggeration", "cfg_weight"):
        assert getattr(own, name) == upstream[name].default, name
    assert Sampling().repetition_penalty == 1.2
    chosen = Sampling(repetition_penalty=1.2)
    assert for_model(chosen, MULTILINGUAL.sampling_defaults, ()).repetition_penalty == 1.2


def test_the_neutral_emotion_fits_every_model():
    assert of_turbo(sampling_for("neutral", None, Sampling().cfg_weight, 1)).exaggeration == 0
    with pytest.raises(InputError, match="no exaggeration"):
        of_turbo(sampling_for("calm", None, Sampling().cfg_weight, 1))
    assert EMOTIONS["neutral"].exaggeration == 0.5
