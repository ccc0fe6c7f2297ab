"""--markup, --lexicon and --cast on the command line, with pico: errors before a model is loaded,
hints, and what -v shows."""

from __future__ import annotations

import pytest
import soundfile

LEXICON, CAST = "nguyen: win\n", "Anna: ada\nBob:\n  voice: bruno\n  rate: 1.2\n"


@pytest.fixture
def run(run_forked, tmp_path):
    (tmp_path / "words.yaml").write_text(LEXICON)
    (tmp_path / "cast.yaml").write_text(CAST)
    (tmp_path / "other.yaml").write_text("Anna: ada\nBob: nobody\n")
    (tmp_path / "play.txt").write_text("ANNA: Hello.\nBOB: Good day, Mrs. Nguyen.\n")

    def run(*args: str, stdin: bytes | None = None):
        done = run_forked(*args, "--model", "pico", cwd=tmp_path, stdin=stdin)
        return done.returncode, done.stderr.decode()

    return run


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (
            ("synth", "a [oops:1]", "--markup"),
            "line 1, column 3: [oops:1] is unknown; known: [pause",
        ),
        (("synth", "[pause:1s]", "--markup"), "the text is empty"),
        (("synth", "[voice:nobody] a", "--markup"), "no voice 'nobody'; known: "),
        (("synth", "a", "--lexicon", "none.yaml"), "lexicon 'none.yaml' cannot be read"),
        (("synth", "Carl: a", "--cast", "cast.yaml"), "'Carl' (line 1) is not in the cast"),
        (("synth", "-", "--stream", "-o", "-", "--markup"), "need the whole text"),
        (("batch", "play.txt", "--cast", "other.yaml", "--out-dir", "x"), "no voice 'nobody'"),
        (("batch", "-", "--markup", "--out-dir", "x"), "row 1: line 1, column 1"),
    ],
)
def test_wrong_usage_is_one_line_before_any_work(run, tmp_path, args, problem):
    code, errors = run(*args, stdin=b"[oops:1] a\n")
    assert code == 2 and problem in errors and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "x").exists()


def test_a_dialogue_is_one_file_or_a_file_a_line(run, tmp_path):
    options = ("--cast", "cast.yaml", "--lexicon", "words.yaml", "--seed", "3", "-v")
    code, errors = run("synth", "--file", "play.txt", "-o", "play.wav", *options)
    assert code == 0 and "lexicon: 'Nguyen' is read as 'Win'" in errors
    code, errors = run(
        "batch",
        "play.txt",
        "--out-dir",
        "lines",
        "--join",
        "joined.wav",
        "--name",
        "{slug}",
        *options,
    )
    assert code == 0 and "lexicon: 'Nguyen' is read as 'Win'" in errors
    names = sorted(path.name for path in (tmp_path / "lines").glob("*.wav"))
    assert names == ["good-day-mrs-nguyen.wav", "hello.wav"]
    seconds = [soundfile.info(tmp_path / name).duration for name in ("play.wav", "joined.wav")]
    assert min(seconds) > 1.5 and max(seconds) < 6


def test_the_lexicon_of_a_text_that_arrives(run):
    options = ("--lexicon", "words.yaml", "--seed", "3", "-v", "-o", "a.wav", "--latency", "chunk")
    code, errors = run("synth", "-", "--stream", *options, stdin=b"Mrs. Nguyen. Yes.")
    assert code == 0 and errors.count("lexicon: 'Nguyen' is read as 'Win'") == 1


def test_a_text_that_looks_like_markup_gets_one_hint(run, tmp_path):
    code, errors = run("synth", "Well. [pause:1s] So. [pause:1s]", "-o", "a.wav")
    assert code == 0 and errors.count("looks like markup ([pause:1s])") == 1
    code, errors = run("batch", "-", "--dry-run", stdin=b"a\nb [pause:1s]\nc [pause:1s]\n")
    assert code == 0 and errors.count("row 2 looks like markup") == errors.count("looks like") == 1
