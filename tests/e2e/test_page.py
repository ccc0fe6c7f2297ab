"""The server's page in a browser: what a person sees and hears.

Needs Debian's chromium and the packages of the dependency group ``browser``.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import urllib.request

import pytest
from helpers.common import SAMPLE
from helpers.serve_process import serving

from chatterbox_opt.audio.prebuffer import Prebuffer

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
TEXT = "Hello there. This text has more than one sentence. It is spoken while it is made."


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("voices"), "--max-characters", "2000") as (address, _):
        yield address


def health(address: str) -> dict:
    return json.load(urllib.request.urlopen(f"{address}/health"))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("no chromium")
    options = ["--autoplay-policy=no-user-gesture-required", "--no-sandbox"]
    options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=options)
        yield launched
        launched.close()


@pytest.fixture(params=[1280, 390])
def page(browser, address, request):
    opened = browser.new_page(viewport={"width": request.param, "height": 900})
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.goto(address)
    until(lambda: opened.evaluate("document.querySelector('#voice').options.length > 1"))
    yield opened
    assert opened.faults == []
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut"
    opened.close()


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def figures(page) -> str:
    return page.evaluate("document.querySelector('#figures').value")


def test_sound_is_heard_while_it_is_made(page, address):
    page.evaluate(
        """() => { window.frames_heard = 0; window.heard_before_end = 0;
        const start = AudioBufferSourceNode.prototype.start;
        AudioBufferSourceNode.prototype.start = function (...when) {
            window.frames_heard += this.buffer.length;
            if (document.querySelector('#speak').disabled) window.heard_before_end += 1;
            return start.apply(this, when); }; }"""
    )
    page.fill("#text", TEXT)
    page.keyboard.press("Control+Enter")
    until(lambda: page.query_selector("#history li"))
    assert page.evaluate("window.heard_before_end") >= 2, "parts came before the end"
    until(lambda: page.is_disabled("#stop"))
    seconds = page.evaluate("window.frames_heard") / 24_000
    assert 3 < seconds < 15 and f"{seconds:.1f} s" in figures(page)
    assert "first audio after" in figures(page) and "real time" in figures(page)
    link = page.query_selector("#history a")
    assert link.get_attribute("download").startswith("speech-")


def test_stop_frees_the_slot(page, address):
    page.fill("#text", TEXT * 10)
    page.click("#speak")
    until(lambda: figures(page))
    page.keyboard.press("Escape")
    until(lambda: health(address)["active"] == 0, 10)
    assert page.is_enabled("#speak") and page.is_hidden("#error")


def test_an_error_is_shown_in_words(page):
    page.fill("#text", "...")
    page.click("#speak")
    until(lambda: page.is_visible("#error"))
    assert "no letter or digit" in page.inner_text("#error")


def test_a_voice_is_uploaded_and_chosen(page):
    name = f"anna{page.viewport_size['width']}"
    page.fill("#name", name)
    page.set_input_files("#file", str(SAMPLE))
    page.click("#add button[type=submit]")
    until(lambda: page.evaluate("document.querySelector('#added').value") == f"{name} is there")
    until(lambda: page.evaluate("document.querySelector('#voice').value") == name)
    page.fill("#name", name)
    page.set_input_files("#file", str(SAMPLE))
    page.click("#add button[type=submit]")
    until(lambda: "there is a voice" in page.evaluate("document.querySelector('#added').value"))


def test_by_keyboard_alone(page):
    page.focus("#text")
    order = []
    for _ in range(8):
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        page.keyboard.press("Tab")
    assert order[:4] == ["text", "voice", "model", "seed"] and "speak" in order


def test_the_buffer_is_the_players(page):
    """The page reckons in its own language; the figures are those of audio/prebuffer.py."""
    draw = random.Random(1)
    cases = []
    for _ in range(200):
        at, arrivals = 10.0, []
        for _ in range(draw.randint(1, 5)):
            at += draw.uniform(0.05, 2)
            arrivals.append((at, draw.uniform(0.1, 4)))
        schedule = draw.choice([(), (0.4, 1.6, 4.0)])
        speed = draw.choice([None, 0.7, 1.3, 6.0])
        cases.append((9.8, schedule, draw.uniform(0, 40), speed, arrivals))
    reckon = """(cases) => cases.map(([started, schedule, total, speed, arrivals]) => {
        const one = new Prebuffer(started, schedule, total, speed);
        for (const [at, seconds] of arrivals) one.add(at, seconds);
        return [one.needed(), one.isEnough()]; })"""
    for (started, schedule, total, speed, arrivals), (needed, enough) in zip(
        cases, page.evaluate(reckon, cases), strict=True
    ):
        own = Prebuffer(started, schedule=schedule, total=total, speed=speed)
        for at, seconds in arrivals:
            own.add(at, seconds)
        assert needed == pytest.approx(own.needed(), abs=1e-6) and enough == own.is_enough()


def test_playback_waits_until_it_will_not_run_dry(page):
    """Parts that come slower than they are played: none is played before enough are there."""
    heard = page.evaluate(
        """() => {
        const context = new AudioContext({sampleRate: RATE}), heard = [];
        const player = new Player(context, new Prebuffer(0, [], 4, null));
        for (let k = 1; k <= 4; k++) {
            player.add(new Float32Array(RATE), 2 * k);
            heard.push(player.next > 0);
        }
        player.stop();
        return heard; }"""
    )
    assert heard == [False, False, True, True]


def test_a_voice_is_recorded(page):
    name = f"recorded{page.viewport_size['width']}"
    page.click("#record")
    until(lambda: page.evaluate("document.querySelector('#added').value") == "recording")
    time.sleep(6)
    page.click("#record")
    until(lambda: "give it a name" in page.evaluate("document.querySelector('#added').value"))
    page.fill("#name", name)
    page.click("#add button[type=submit]")
    until(lambda: page.evaluate("document.querySelector('#voice').value") == name)
