"""The command line in real processes: exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import soundfile
from helpers.batch_process import listen_to_ctrl_c
from helpers.common import SAMPLE
from helpers.imports import imported_by
from typer.testing import CliRunner

from chatterbox_opt.cli.application import app

COMMAND = [sys.executable, "-m", "chatterbox_opt"]
SHORT = ["--max-tokens", "20", "--seed", "3", "--cfm-steps", "2"]


def run(*args: str, cwd=None, stdin: bytes | None = None, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *args], cwd=cwd, input=stdin, capture_output=True, timeout=240,
        env=os.environ | (env or {}),
    )  # fmt: skip


def one_line(result: subprocess.CompletedProcess) -> str:
    lines = result.stderr.decode().strip().splitlines()
    assert len(lines) == 1, result.stderr.decode()
    assert lines[0].startswith("error: ")
    return lines[0]


def test_synth_writes_a_wav_and_reports_its_speed(tiny, tmp_path, run_forked):
    result = run_forked("synth", "Hello there.", "--model", str(tiny), "--voice", str(SAMPLE), "-v", *SHORT,
                 "-o", "hello.wav", "--json", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    stderr = result.stderr.decode()
    assert "device cpu" in stderr
    assert "· compile none · offload none" in stderr
    assert re.search(r"s audio, \d+\.\d\dx real time \(seed 3\)", stderr)
    assert "profile cpu: no CUDA GPU" in stderr
    assert stderr.count("noise") == 1, "a made model says once that it speaks noise"
    report = json.loads(result.stdout)
    info = soundfile.info(tmp_path / "hello.wav")
    assert info.duration == pytest.approx(report["audio_seconds"], abs=0.01)
    assert report["seed"] == 3
    assert report["tokens"] <= 20
    assert report["attempts"] == 3 and report["faults"], "noise of no end"
    assert stderr.count("warning: chunk 1 ('Hello there.'): the best of 3 attempts") == 1
    assert {"t3", "flow", "vocoder", "watermark"} == set(report["stage_seconds"])
    assert [p.name for p in tmp_path.iterdir()] == ["hello.wav"]


def test_a_pipe_gets_the_wav_and_nothing_else(tiny, tmp_path, run_forked):
    args = ["synth", "-", "--model", str(tiny), *SHORT, "--no-watermark", "-o"]
    piped = run_forked(*args, "-", stdin=b"Hello there.", cwd=tmp_path)
    assert piped.returncode == 0, piped.stderr.decode()
    filed = run_forked(*args, "out.wav", "-q", stdin=b"Hello there.", cwd=tmp_path)
    assert filed.stderr.decode().startswith("warning: "), "quiet does not hide warnings"
    assert "Generated" not in filed.stderr.decode()
    assert piped.stdout == (tmp_path / "out.wav").read_bytes(), "the same seed gives the same bytes"


def test_ctrl_c_leaves_no_files(tiny, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("A sentence that is said again and again, without end. " * 2000)
    process = subprocess.Popen(
        [*COMMAND, "synth", "--file", str(text), "--model", str(tiny), "-o", "out.wav"],
        cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 100
        while not list(tmp_path.glob(".*.part")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(tmp_path.glob(".*.part")), "it did not start to write"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr.decode().strip().splitlines()[-1] == "error: interrupted"
    assert [p.name for p in tmp_path.iterdir()] == ["long.txt"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "pass the text"),
        (["hello", "--file", "x.txt"], "pass the text"),
        ([""], "the text is empty"),
        (["  \n"], "the text is empty"),
        (["?!..."], "no letter or digit"),
        (["🎉"], "no letter or digit"),
        (["\x07\x1b"], "is empty"),
        (["--file", "missing.txt"], "cannot be read"),
        (["--file", "nul.txt"], "NUL byte at position 3"),
        (["--file", "latin1.txt"], "not UTF-8"),
        (["hello", "--voice", "missing.wav"], "there is no voice file"),
        (["hello", "--voice", "anna"], "no voice 'anna'"),
        (["hello", "--voice", "empty.wav"], "is empty"),
        (["hello", "--voice", "."], "is a directory"),
        (["hello", "--model", "nope"], "unknown model 'nope'; known: chatterbox"),
        (["hello", "--profile", "rtx9999"], "unknown profile 'rtx9999'; known: auto, cpu"),
        (["hello", "--profile", "bad.yaml"], "unknown key 'dtpye'"),
        (["hello", "--device", "tpu"], "known: auto, cuda, mps, cpu"),
        (["hello", "--dtype", "int3"], "known: float32"),
        (["hello", "--compile", "x"], "known: none"),
        (["hello", "--offload", "x"], "known: none"),
        (["hello", "--temperature", "9"], "temperature is 9.0"),
        (["hello", "--seed", "x"], "Invalid value for '--seed'"),
        (["hello", "--foo"], "No such option"),
        (["hello", "-o", "x.aac"], "known audio extension"),
        (["hello", "-o", "no/such/dir/x.wav"], "make it first"),
        (["hello", "-o", "x.wav", "--subtype", "PCM_99"], "it has PCM_16"),
        (["hello", "-o", "-", "--json"], "cannot both"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(tmp_path, monkeypatch, args, message, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nul.txt").write_bytes(b"abc\0def")
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "bad.yaml").write_text("dtpye: float16")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["chatterbox-opt", "synth", *args])
    from chatterbox_opt.cli.main import main

    hook = sys.excepthook
    with pytest.raises(SystemExit) as caught:
        main()
    sys.excepthook = hook
    stderr = capsys.readouterr().err.strip()
    assert caught.value.code == 2
    assert message in stderr
    assert len(stderr.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["profiles", "show", "rtx4090"], 0), (["--version"], 0), (["synth", "--help"], 0),
        (["synth", "?"], 2), (["synth", "hi", "--voice", "nope.wav"], 2), (["voices", "list"], 0),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (["--help"], 0), (["profiles"], 0), (["batch", "--help"], 0), (["nonsense"], 2),
                (["synth", "hi", "--model", "nope"], 2),
            )
        ),
    ],
)  # fmt: skip
def test_quick_answers_import_no_torch(args, code, tmp_path):
    """A real process that prints its modules at exit; checks for torch, not for time."""
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('MODULES', *sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['chatterbox-opt', *{args!r}]\n"
        "from chatterbox_opt.cli.main import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path)
    assert result.returncode == code, result.stderr.decode()
    loaded = set(result.stderr.decode().rpartition("MODULES")[2].split())
    assert "chatterbox_opt.cli.main" in loaded
    assert not loaded & {
        "torch",
        "transformers",
        "chatterbox",
        "librosa",
        "numba",
        "huggingface_hub",
    }
    if args[-1] in ("--help", "--version"):
        assert not loaded & {"numpy", "concurrent.futures"}
        ours = "chatterbox_opt.text.tokenizers"
        read = {name.removeprefix(ours) for name in loaded if name.startswith(ours)}
        assert read <= {"", ".files"}, "names of files, and no tokenizer"


def test_synth_imports_only_what_it_uses(tiny, tmp_path):
    """Modules that upstream imports and this package does not need."""
    arguments = ["synth", "Hi.", "--model", str(tiny), "-q", "--max-tokens", "9", "--seed", "1"]
    loaded = imported_by([*arguments, "-o", "x.wav"], tmp_path)
    assert "torch" in loaded
    assert not loaded & {"gradio", "fastapi", "diffusers", "transformers", "conformer", "sklearn"}


def test_failures_exit_1(tmp_path, run_forked):
    (tmp_path / "model").mkdir()
    missing = run_forked("synth", "hello", "--model", "model", cwd=tmp_path)
    assert missing.returncode == 1
    assert "lacks ve.safetensors" in one_line(missing)
    offline = run("synth", "hello", cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 1
    assert "Ways out" in offline.stderr.decode()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_pipe_is_one_line(tiny, tmp_path, run_forked):
    with open("/dev/full", "wb") as full:
        args = ["synth", "Hi.", "--model", str(tiny), *SHORT, "-q", "-o", "-"]
        result = run_forked(*args, stdout=full, cwd=tmp_path)
    assert result.returncode == 1
    assert (
        result.stderr.decode()
        .strip()
        .splitlines()[-1]
        .startswith("error: could not write to standard output (No space left")
    )
    assert "Traceback" not in result.stderr.decode()


def test_an_unexpected_error_is_one_line_too(tmp_path):
    script = (
        "import sys\n"
        "from chatterbox_opt.cli import main\n"
        "from chatterbox_opt.engine import probe\n"
        "def broken(*_): raise RuntimeError('CUDA driver\\nfell over')\n"
        "probe.probe = broken\n"
        "sys.argv = ['chatterbox-opt', 'profiles', 'detect']\n"
        "main.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path)
    assert result.returncode == 1
    assert one_line(result) == (
        "error: unexpected RuntimeError: CUDA driver fell over; run again with --debug"
    )


def test_bytes_that_are_not_utf8_on_standard_input(tmp_path):
    for environment in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        result = run("synth", "-", stdin=b"caf\xe9", cwd=tmp_path, env=environment)
        assert result.returncode == 2
        assert "not UTF-8" in one_line(result)
    closed = subprocess.run(
        ["bash", "-c", 'exec "$@" <&-', "-", *COMMAND, "synth", "-"], capture_output=True
    )
    assert closed.returncode == 2
    assert "standard input is closed" in one_line(closed)


def test_without_a_terminal_clear_needs_yes(tmp_path):
    result = run("voices", "clear", "--voice-cache", str(tmp_path), stdin=b"")
    assert result.returncode == 2
    assert "--yes" in one_line(result)


@pytest.mark.slow
def test_termination_leaves_no_files(tiny, tmp_path):
    script = (
        "import os, signal, sys\n"
        "from chatterbox_opt.audio import containers\n"
        "from chatterbox_opt.cli import main\n"
        "def write(self, wave): os.kill(os.getpid(), signal.SIGTERM)\n"
        "containers.SoundfileSink.write = write\n"
        f"sys.argv = ['chatterbox-opt', 'synth', 'Hi.', '--model', {str(tiny)!r},"
        " '--max-tokens', '9', '--seed', '1', '-q', '--no-watermark']\n"
        "main.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path)
    assert result.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback_and_sets_the_switches(tmp_path, run_forked):
    result = run_forked("synth", "hello", "--model", str(tmp_path), "--debug", cwd=tmp_path)
    stderr = result.stderr.decode()
    assert result.returncode == 1
    assert "Traceback" in stderr
    assert stderr.strip().splitlines()[-1].startswith("error: ")


def test_debug_switches(monkeypatch):
    from chatterbox_opt.cli import options
    from chatterbox_opt.cli.terminal import console

    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    monkeypatch.setenv("TORCH_LOGS", "+inductor")
    options.OutputOptions(debug=True).set_up_logging(console.Reporter())
    assert os.environ["CUDA_LAUNCH_BLOCKING"] == "1"
    assert os.environ["TORCH_LOGS"] == "+inductor", "a value set by the user is not changed"
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING")


def test_voices_commands(tmp_path):
    runner, where = CliRunner(), ["--voice-cache", str(tmp_path)]
    assert runner.invoke(app, ["voices", "add", "anna", str(SAMPLE), *where]).exit_code == 0
    assert "anna" in runner.invoke(app, ["voices", "list", *where]).output
    assert runner.invoke(app, ["voices", "remove", "anna", *where]).exit_code == 0
    assert runner.invoke(app, ["voices", "remove", "anna", *where]).exit_code != 0
    assert runner.invoke(app, ["voices", "clear", "--yes", *where]).exit_code == 0


def test_models_and_profiles_commands(tmp_path):
    runner = CliRunner()
    made = runner.invoke(app, ["models", "make", str(tmp_path / "m"), "--seed", "5"])
    assert made.exit_code == 0
    assert (tmp_path / "m" / "t3_cfg.safetensors").exists()
    assert "chatterbox" in runner.invoke(app, ["models", "list"]).output
    shown = runner.invoke(app, ["profiles", "show", "gtx1080"]).output
    assert "compute" in shown
    detected = runner.invoke(app, ["profiles", "detect", "--device", "cpu"]).output
    assert "no CUDA GPU" in detected


def test_doctor_on_a_gpu_that_torch_has_no_kernels_for(monkeypatch):
    import torch

    from chatterbox_opt.cli.doctor import command as doctor_command

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 << 30, 32 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GeForce RTX 5090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    found = doctor_command._gpu()
    assert not found.good
    assert "has no kernels for GeForce RTX 5090 (capability 12.0)" in found.remedy
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "sm_120"])
    assert doctor_command._gpu().detail == (
        "GeForce RTX 5090, 30,720 of 32,768 MiB free, capability 12.0"
    )


def test_doctor_is_content_without_gpu_and_weights():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    found = {check["what"]: check for check in report["checks"]}
    assert result.exit_code == 0, report
    assert report["healthy"]
    assert "--model DIR" in found["model: chatterbox"]["detail"]
    assert "turbo, nano, multilingual" in found["other models"]["detail"]
    assert "pykakasi" in found["languages"]["detail"] or "ja" in found["languages"]["detail"]
    assert "cores" in found["cpu"]["detail"]
    assert "GiB" in found["memory"]["detail"]
    assert "kernels" in found["numba"]["detail"]
    assert "wav, flac, ogg, mp3" in found["formats"]["detail"]
    assert "free)" in found["cache: voices"]["detail"]


def test_doctor_knows_the_libraries_of_languages(monkeypatch, tmp_path):
    from chatterbox_opt.cli.doctor import machine

    monkeypatch.setenv("PKUSEG_HOME", str(tmp_path))
    monkeypatch.setattr(
        machine.importlib.util, "find_spec", lambda name: name == "spacy_pkuseg" or None
    )
    assert machine.languages().startswith(
        "libraries for zh (downloads its dictionary once); none for auto (py3langid), he (dicta_onn"
    )
    (tmp_path / "spacy_ontonotes").mkdir()
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: True)
    assert machine.languages() == "libraries for auto, he, ja, ru, zh"


def test_doctor_names_the_remedies(monkeypatch, tmp_path):
    from chatterbox_opt.cli.doctor import command as doctor_command

    monkeypatch.setattr(doctor_command.machine, "version", lambda package: None)
    monkeypatch.setattr(doctor_command.machine, "caches", lambda store: {})
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    [line] = [line for line in result.output.splitlines() if line.startswith("chatterbox-tts")]
    assert "FIX" in line and line.endswith("missing; pip install chatterbox-tts")


def test_a_required_option_stays_required(tmp_path, run_forked):
    (tmp_path / "a.txt").write_text("Hello.")
    result = run_forked("batch", "a.txt", cwd=tmp_path)
    assert result.returncode == 2
    assert "pass --out-dir DIR, or --dry-run" in one_line(result)


@pytest.mark.parametrize("command", ["synth", "batch", "bench"])
def test_help_shows_values_and_nothing_of_python(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert "MISSING" not in shown and "object at" not in shown and "<function" not in shown
    assert "[default: " in shown
