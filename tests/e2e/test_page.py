"""The server's page in a browser: what a person sees and hears; and its API under random calls.

Needs Debian's chromium and the packages of the dependency group ``browser``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers.common import ROOT, SAMPLE

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]
TEXT = "Hello there. This text has more than one sentence. It is spoken while it is made."


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    environment = {**os.environ, "CHATTERBOX_VOICES": str(tmp_path_factory.mktemp("voices"))}
    arguments = ["serve", "--model", "pico", "--port", "0", "--max-characters", "2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "chatterbox_opt", *arguments],
        stderr=subprocess.PIPE, env=environment, text=True, cwd=ROOT,
    )  # fmt: skip
    yield process.stderr.readline().split()[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def health(address: str) -> dict:
    return json.load(urllib.request.urlopen(f"{address}/health"))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("no chromium")
    options = ["--autoplay-policy=no-user-gesture-required", "--no-sandbox"]
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


def test_no_call_is_answered_with_a_failure(address):
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"]
    command += ["--checks", "not_a_server_error", "-n", "25", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
