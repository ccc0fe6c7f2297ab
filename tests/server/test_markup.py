"""Markup in a client's text: the engine's own sound, voices by name only, bounded silence."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.common import SAMPLE
from helpers.http_server import running, settings_of

from chatterbox_opt import Request, Sampling
from chatterbox_opt.audio.streaming import to_pcm
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import TextError
from chatterbox_opt.server.voices import cast_of

SPEECH = "/v1/audio/speech"
KNOBS = {"seed": 3, "max_tokens": 20, "cfm_steps": 2}


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    """A client, and the engines that were loaded."""
    with running(settings_of(tmp_path_factory.mktemp("server"), str(tiny))) as server:
        with server.client() as client:
            with SAMPLE.open("rb") as recording:
                files = {"file": ("anna.flac", recording)}
                added = client.post("/v1/audio/voices", data={"name": "anna"}, files=files)
            assert added.status_code == 201
            yield client, server.engines


def speak(client, text: str, **more):
    body = {"input": text, "response_format": "pcm", "split": True, **KNOBS, **more}
    return client.post(SPEECH, json=body)


def test_tags_are_read_only_if_the_client_says_so(served):
    client, engines = served
    text = "One. [pause:300ms][voice:Anna]Two."
    marked, literal = speak(client, text, markup=True), speak(client, text)
    assert marked.status_code == literal.status_code == 200 and marked.content != literal.content
    request = Request(
        "", text.replace("Anna", str(SAMPLE)), sampling=Sampling(**KNOBS), markup=True
    )
    assert marked.content == to_pcm(engines[0].synthesize(request).samples)
    quiet = np.frombuffer(marked.content, np.int16) == 0
    assert quiet.sum() >= 0.3 * 24_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[oops:1]Hi.", "line 1, column 1"),
        ("[voice:nobody]Hi.", "no voice 'nobody'"),
        (f"[voice:{SAMPLE}]Hi.", "no voice"),
        ("[voice:../../etc/passwd]Hi.", "no voice"),
        ("Hi. [pause:90s] a [pause:90s]", "add up to more than 120s"),
        ("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><speak>&b;</speak>", "a DTD"),
    ],
)
def test_what_is_wrong_is_the_clients_error(served, text, problem):
    answer = speak(served[0], text, markup=True)
    assert answer.status_code == 422 and problem in answer.json()["error"]["message"]


def test_the_markup_is_read_in_the_language_of_the_text():
    text = "<speak><say-as interpret-as='date'>2026-11-28</say-as></speak>"
    assert not cast_of(EngineSpec(model="pico"), text, None).members
    with pytest.raises(TextError, match="in German write it"):
        cast_of(EngineSpec(model="pico"), text, "de")
