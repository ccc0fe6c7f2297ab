"""README and docs say what is true: commands and Python blocks run as they stand, over a hub cache
that holds tiny weights; tables, figures, links and file names are compared with their sources."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.books import PNG, epub
from helpers.command_server import command_server
from helpers.common import ROOT

README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "tests" / "README.md",
          ROOT / "docs" / "samples" / "README.md"]  # fmt: skip
PACKAGE = ROOT / "chatterbox_opt"
MOST_WORDS = 1200
MADE = {  # what the commands of a document leave behind
    "README.md": ("first.wav", "hello.wav", "cloned.wav", "book/0003.wav", "book.flac"),
    "configuration.md": (
        "greedy.wav",
        "piped.wav",
        "chapter.mp3",
        "out.ogg",
        "anna.flac",
        "converted.wav",
        "converted/speaker.wav",
    ),
    "script.md": (
        "ready.wav",
        "literal.wav",
        "hello-ssml.wav",
        "nguyen.wav",
        "dialogue.wav",
        "dialogue.flac",
        "slow.wav",
        "rates/0002.wav",
        "dub.wav",
        "cut.flac",
        "dub/0003.wav",
        "fits.jsonl",
        "novel.m4b",
        "novel.mp3",
        "page.opus",
        "small.m4a",
        "train.srt",
        "train.json",
        "told/0001.wav",
        "told.vtt",
    ),
    "batch.md": ("book.flac", "lines/a-hello-there.ogg", "piped/0002.wav", "events.jsonl"),
}
FAST = ("README.md",)  # the commands and blocks of the others are slow tests
BLOCKS = ("README.md", "python.md", "script.md")  # those with Python in them
FILM = """1
00:00:01,000 --> 00:00:03,500
Good evening.

2
00:00:04,000 --> 00:00:05,600
We have been waiting for you here.

3
00:00:05,600 --> 00:00:06,600
[door] Where have you been all day?
"""
RUN_BLOCKS = """
import json, sys
import helpers.unpinned
for where, code in json.load(sys.stdin):
    print(where, file=sys.stderr)  # the last one before a traceback is to blame
    exec(compile(code, where, "exec"), {"__name__": "__main__"})
"""


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(path), re.DOTALL | re.MULTILINE)


def named_blocks(path: Path) -> dict[str, str]:
    """The files that a document shows: each behind its name and a colon."""
    pattern = r"^`([\w.-]+)`:\n\n```\w+\n(.*?)^```"
    return dict(re.findall(pattern, text(path), re.DOTALL | re.MULTILINE))


def commands(path: Path) -> list[str]:
    lines = "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if "chatterbox-opt " in line]


def result(name: str):
    return json.loads(text(ROOT / "benchmarks" / "results" / f"{name}.json"))


def rows(name: str) -> dict[str, dict]:
    return {row["name"]: row for row in result(name)["rows"]}


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
    (home / "chapter.txt").write_text("It was a bright cold day in April. " * 3)
    (home / "book.txt").write_text("Chapter one.\nIt was cold.\n\nChapter two.\n")
    row = "a,Hello there.,samples/speaker.flac,0.3\n"
    (home / "lines.csv").write_text(f"id,text,voice,cfg_weight\n{row}")
    (home / "film.srt").write_text(FILM)
    for name, content in named_blocks(ROOT / "docs" / "script.md").items():
        (home / name).write_text(content)
    (home / "novel.epub").write_bytes(epub(["<h1>Chapter 1</h1><p>It was cold.</p>"] * 2))
    (home / "cover.png").write_bytes(PNG)
    (home / "page.html").write_text("<h1>A page</h1><p><img alt='A map'/>It was cold.")
    (home / "bin").mkdir()
    script = home / "bin" / "chatterbox-opt"
    with command_server(script, environment(home), "helpers.unpinned"):
        yield home


def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "CHATTERBOX_VOICE_CACHE": str(home / "voices"),
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def run(home: Path, command: list[str], given: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=home, env=environment(home), input=given, text=True, capture_output=True, timeout=240
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MADE],
)
def test_the_commands_run_in_order(workplace, name):
    [document] = [path for path in DOCS if path.name == name]
    for command in commands(document):
        done = run(workplace, ["bash", "-euo", "pipefail", "-c", command])
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    for made in MADE[name]:
        assert (workplace / made).stat().st_size > 100, made


@pytest.mark.parametrize("name", MADE)
def test_the_commands_have_options_that_exist(workplace, name, monkeypatch):
    """Parsed and not run, so that a document whose commands are slow has a fast test too."""
    import typer

    from chatterbox_opt.cli.application import app

    monkeypatch.chdir(workplace)
    [document] = [path for path in DOCS if path.name == name]
    for command in commands(document):
        words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
        words = words[words.index("chatterbox-opt") + 1 :]
        ends = [i for i, word in enumerate(words) if set(word) <= set("|&;<>")]
        parsed(typer.main.get_command(app), words[: min(ends, default=len(words))])


def parsed(command, words: list[str]) -> None:
    """Parse the words of a command and of its subcommands; an error of usage is raised."""
    with command.make_context("chatterbox-opt", list(words)) as context:
        if rest := getattr(context, "_protected_args", []) + context.args:
            _, below, words = command.resolve_command(context, rest)
            parsed(below, words)


def test_no_other_document_has_commands_that_run():
    assert {path.name for path in DOCS if commands(path)} == set(MADE)


def test_the_documents_have_python_blocks():
    assert {path.name for path in DOCS if blocks(path, "python")} == set(BLOCKS)
    assert sum(len(blocks(path, "python")) for path in DOCS) >= 5


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BLOCKS],
)
def test_the_python_blocks_run(workplace, name):
    [document] = [path for path in DOCS if path.name == name]
    found = [
        (f"{name}, block {number}", code)
        for number, code in enumerate(blocks(document, "python"), 1)
    ]
    done = run(workplace, [sys.executable, "-c", RUN_BLOCKS], json.dumps(found))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", [*DOCS, *OTHERS], ids=lambda path: path.name)
def test_make_targets_exist(path):
    makefile = text(ROOT / "Makefile")
    for target in re.findall(r"^make (\S+)|`make ([a-z-]+)", text(path), re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*DOCS, *OTHERS], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    found = re.findall(r"\]\(([^)\s]+)\)", text(path))
    found += re.findall(r'(?:src|srcset)="([^"]+)"', text(path))
    for link in found:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text(target), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def test_the_readme_is_short():
    assert len(text(README).split()) <= MOST_WORDS


def test_the_readme_has_small_samples_to_listen_to():
    samples = re.findall(r"docs/samples/\w+\.mp3", text(README))
    assert 3 <= len(samples) <= 5
    for sample in samples:
        assert 10_000 < (ROOT / sample).stat().st_size < 100_000


@pytest.mark.parametrize("path", [README, ROOT / "docs" / "configuration.md"], ids=lambda p: p.name)
def test_the_profile_table_is_the_profiles(path):
    from chatterbox_opt.config.profile import load_profile, profile_names

    for name in profile_names():
        profile = load_profile(name)
        [row] = [
            row
            for row in re.findall(rf"^\| {name} \|.*$", text(path), re.MULTILINE)
            if row.count("|") == 6
        ]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        dtype = (
            profile.t3
            if not profile.compute
            else f"{profile.t3} stored, {profile.compute} computed"
        )
        if profile.flow != profile.t3:
            dtype += f", flow {profile.flow}"
        assert cells[2:] == [dtype, profile.compile, profile.offload]


def test_the_rules_of_auto_are_those_of_the_code():
    from chatterbox_opt.config import plan

    shown = text(ROOT / "docs" / "configuration.md")
    assert (
        f"under {plan.RESERVED_MIB:,} MiB free, or under {plan.MIDDLE_MIB:,} MiB in total" in shown
    )
    assert f"at least {plan.BIG_MIB:,} MiB in total" in shown


def test_every_environment_variable_is_documented():
    from chatterbox_opt.checkpoints import weight_cache
    from chatterbox_opt.config import settings
    from chatterbox_opt.script import lexicon

    shown = text(ROOT / "docs" / "configuration.md")
    for name in (*settings.ENVIRONMENT, settings.DISABLE_OPTIMIZATION, settings.GPU_KERNELS, weight_cache.VARIABLE,
                 "CHATTERBOX_VOICE_CACHE", "CHATTERBOX_VOICES", lexicon.VARIABLE):  # fmt: skip
        assert f"| {name} |" in shown


@pytest.mark.parametrize("command", ["synth", "batch", "convert", "bench"])
def test_every_option_is_documented(command):
    import typer

    from chatterbox_opt.cli.application import app

    names = {"synth": [], "convert": [], "batch": ["batch.md"], "bench": ["benchmarks.md"]}[command]
    shown = "".join(text(ROOT / "docs" / name) for name in ["configuration.md", *names])
    for parameter in typer.main.get_command(app).commands[command].params:
        options = [name for name in parameter.opts if name.startswith("-")]
        if options and "--text" not in options:
            assert any(re.search(rf"{name}\b", shown) for name in options), options


def test_the_first_sentence_has_the_figure_of_the_results():
    [claim] = re.findall(r"([\d.]+)x as fast as chatterbox-tts for one text", text(README))
    row = rows("epyc-vnni-2-cores")["int8"]
    assert claim == f"{row['vs_upstream']['synthesis']:.1f}"


def test_the_chart_is_described_with_its_figures():
    shown = " ".join(text(README).split())
    found = rows("epyc-vnni-2-cores")
    for name, label in (("upstream", "chatterbox-tts"), *((n, n) for n in ("float32", "bfloat16", "int8"))):  # fmt: skip
        assert f"{label} {found[name]['synthesis_seconds']:.1f}" in shown


def test_the_readme_shows_the_results():
    from benchmarks.readme import PERFORMANCE, between, performance

    assert between(README, PERFORMANCE).strip() == performance().strip()


def test_the_full_table_is_that_of_a_results_file():
    from benchmarks.readme import BENCH, between
    from chatterbox_opt.bench.report import markdown, read

    shown = between(ROOT / "docs" / "benchmarks.md", BENCH)
    name = re.search(r"benchmarks/results/(\S+\.json)", shown)
    assert name, "run make bench"
    assert markdown(read(ROOT / "benchmarks" / "results" / name[1])) in shown


def test_the_other_figures_of_the_benchmarks_are_in_the_results():
    shown = " ".join(text(ROOT / "docs" / "benchmarks.md").split())
    for name in ("epyc-vnni-2-cores-batch", "xeon-amx-2-cores-batch"):
        batch = result(name)["rows"]
        t3 = [batch[f"t3, {n} at once"][0]["t3_tokens_per_second"] for n in (1, 12)]
        whole = [batch[f"whole, {n} at once"][0]["realtime_x"] for n in (1, 12)]
        figures = [f"{figure:.1f}" for figure in t3] + [f"{figure:.2f}" for figure in whole]
        assert f"| {' | '.join(figures)} |" in shown
    for name, row in rows("epyc-vnni-2-cores-cold").items():
        first, again = row["cold_first_seconds"], f"{row['cold_seconds']:.1f} s"
        first = f"{first:.1f} s" if first else "-"
        name = name.replace("upstream", "chatterbox-tts")
        assert f"| {name} | {first} | {again} | {row['cold_vs_upstream']:.1f} |" in shown
    for name, row in rows("xeon-amx-2-cores").items():
        flow, whole = f"{row['flow_seconds']:.1f}", f"{row['realtime_x']:.2f}x"
        tokens = f"{row['t3_tokens_per_second']:.1f}"
        expected = (
            f"chatterbox-tts {tokens} T3 tokens/s, flow {flow} s, in all {whole}"
            if name == "upstream"
            else f"{name} {tokens}, {flow}, {whole}"
        )
        assert expected in shown


def strings(path: Path) -> list[str]:
    """The string constants of a file; an f-string's parts one by one."""
    nodes = ast.walk(ast.parse(text(path)))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_the_messages_that_the_readme_quotes_are_in_the_code():
    table = text(README).split("## Troubleshooting")[1].split("## Documentation")[0]
    quoted = re.findall(r'"([^"]+)"', table)
    assert len(quoted) >= 5
    known = [string for path in PACKAGE.rglob("*.py") for string in strings(path)]
    for part in (part for message in quoted for part in message.split("...")):
        assert any(part.strip() in string for string in known), part


# --- docs/architecture.md ---------------------------------------------------------------------

ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_the_architecture_names_every_file():
    shown = text(ARCHITECTURE)
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if path.name != "__init__.py" or path.parent == PACKAGE:
            assert f"`{name}`" in shown, name


def test_the_architecture_names_no_file_that_is_not_there():
    for name in re.findall(r"`([a-z_0-9/]+\.py)[`:]", text(ARCHITECTURE)):
        assert (PACKAGE / name).is_file(), name


def test_the_functions_that_the_architecture_names_exist():
    found = re.findall(r"`([a-z_0-9/]+\.py):(\w+)`", text(ARCHITECTURE))
    assert len(found) >= 20
    for name, function in found:
        assert re.search(rf"^ *def {function}\(", text(PACKAGE / name), re.MULTILINE), (
            f"{name}:{function}"
        )


def test_the_classes_that_the_architecture_names_exist():
    code = "".join(text(path) for path in PACKAGE.rglob("*.py"))
    for name in set(re.findall(r"`([A-Z][a-z]\w+)`", text(ARCHITECTURE))) - {"ChatterboxProvider"}:
        assert re.search(rf"^class {name}\b", code, re.MULTILINE), name
