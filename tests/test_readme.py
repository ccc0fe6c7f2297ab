"""The README's commands and Python run as they stand, over a hub cache that holds tiny weights."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


COMMANDS = [
    line for block in blocks("sh") for line in block.splitlines() if "chatterbox-opt " in line
]


@pytest.fixture(scope="module")
def workplace(tiny, tmp_path_factory):
    """A directory with the repository's samples, and a hub cache where the weights would be."""
    home = tmp_path_factory.mktemp("readme")
    revision = "0" * 40
    repository = home / "hf" / "hub" / "models--ResembleAI--chatterbox"
    shutil.copytree(tiny, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(ROOT / "samples", home / "samples")
    (home / "chapter.txt").write_text("It was a bright cold day in April. " * 20)
    (home / "book.txt").write_text("Chapter one.\nIt was cold.\n\nChapter two.\n")
    row = "a,Hello there.,samples/speaker.flac,0.3\n"
    (home / "lines.csv").write_text(f"id,text,voice,cfg_weight\n{row}")
    (home / "bin").mkdir()
    script = home / "bin" / "chatterbox-opt"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m chatterbox_opt "$@"\n')
    script.chmod(0o755)
    return home


def run(home: Path, command: list[str]) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "CHATTERBOX_VOICE_CACHE": str(home / "voices"),
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, timeout=240)


def test_the_two_first_commands_are_targets():
    first = blocks("sh")[0]
    targets = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", first, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE)


def test_every_command_runs_in_order(workplace):
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        result = run(workplace, ["bash", "-euo", "pipefail", "-c", command])
        assert result.returncode == 0, f"{command}\n{result.stderr.decode()}"
    made = ("hello.wav", "cloned.wav", "anna.flac", "piped.wav", "chapter.mp3", "out.ogg",
            "book/0003.wav", "book.flac", "lines/a-hello-there.ogg", "piped/0002.wav")  # fmt: skip
    for name in made:
        assert (workplace / name).stat().st_size > 1000, name


@pytest.mark.parametrize("code", blocks("python"))
def test_every_python_block_runs(workplace, code):
    result = run(workplace, [sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr.decode()


def test_the_profile_table_is_the_profiles():
    from chatterbox_opt.config.profile import load_profile, profile_names

    for name in profile_names():
        profile = load_profile(name)
        [row] = re.findall(rf"^\| {name} \|.*$", README, re.MULTILINE)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        dtype = (
            profile.t3
            if not profile.compute
            else f"{profile.t3} stored, {profile.compute} computed"
        )
        if profile.flow != profile.t3:
            dtype += f", flow {profile.flow}"
        assert cells[2:] == [dtype, profile.compile, profile.offload]


def test_the_tree_names_every_module():
    tree = README.split("## How it is built")[1]
    for path in (ROOT / "chatterbox_opt").glob("*.py"):
        assert path.name in tree or path.name == "__init__.py"


def test_every_figure_in_the_speed_table_is_in_a_results_file():
    from chatterbox_opt.bench.report import markdown, read

    shown = README.split("<!-- bench: start -->\n")[1].split("<!-- bench: end -->")[0]
    name = re.search(r"benchmarks/results/(\S+\.json)", shown)
    assert name, "run make bench"
    assert markdown(read(ROOT / "benchmarks" / "results" / name[1])) in shown
