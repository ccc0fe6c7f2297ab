"""What is shown while something is waited for."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from chatterbox_opt import request
from chatterbox_opt.cli.terminal import console
from chatterbox_opt.utils import steps


@pytest.fixture
def reporter_on():
    """A reporter that prints to a string, as on a terminal or in a pipe."""

    def made(*, terminal: bool, **options) -> tuple[console.Reporter, io.StringIO]:
        reporter, printed = console.Reporter(**options), io.StringIO()
        reporter.console = Console(file=printed, force_terminal=terminal, soft_wrap=True, width=80)
        console.show_log(reporter)
        return reporter, printed

    return made


def test_in_a_pipe_only_long_and_rare_steps_are_lines(reporter_on):
    _, printed = reporter_on(terminal=False)
    steps.announce("loading the model")
    steps.announce("compiling, once", rare=True)
    steps.announce("compiling, once", rare=True)
    assert printed.getvalue() == "compiling, once\n"


def test_on_a_terminal_a_step_is_shown_until_the_next_line(reporter_on):
    reporter, printed = reporter_on(terminal=True)
    steps.announce("loading the model")
    steps.announce("compiling, once", rare=True)
    reporter.warn("slow")
    reporter.status("done")
    shown = printed.getvalue()
    assert "compiling, once" in shown
    assert reporter._spinner is None
    assert shown.rstrip().endswith("done")
    assert "\x1b[?25h" in shown, "the cursor is visible again"


def test_a_step_of_a_download_shows_its_own_bars(reporter_on):
    reporter, _ = reporter_on(terminal=True)
    steps.announce("loading the model")
    steps.announce("")
    assert reporter._spinner is None


def test_under_progress_bars_a_rare_step_is_a_line(reporter_on):
    reporter, printed = reporter_on(terminal=True)
    with reporter.bars():
        steps.announce("loading the model")
        steps.announce("compiling, once", rare=True)
        assert reporter._spinner is None
    assert "loading" not in printed.getvalue()
    assert "compiling, once" in printed.getvalue()


def test_a_step_of_the_synthesis_is_shown_next_to_its_bar(reporter_on):
    reporter, printed = reporter_on(terminal=True)
    with reporter.progress() as show:
        show(request.Progress(chunk=0, chunks=2, characters=10, tokens=3))
        steps.announce("tokens to audio")
    assert "chunk 1/2: tokens to audio" in printed.getvalue()


def test_quiet_shows_no_steps(reporter_on):
    _, printed = reporter_on(terminal=True, quiet=True)
    steps.announce("compiling, once", rare=True)
    assert not printed.getvalue()
