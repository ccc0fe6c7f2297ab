"""The examples run with the built-in model, and use the public interface only."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from helpers.common import ROOT

import chatterbox_opt

EXAMPLES = ROOT / "examples"
OUTPUTS = {  # its argument -> what is there afterwards
    "quickstart.py": ("quickstart.wav", ("quickstart.wav",)),
    "stream.py": ("stream.wav", ("stream.wav",)),
    "batch.py": ("batch", ("batch/line-1.wav", "batch/line-2.wav", "batch/line-4.wav")),
    "server_warmup.py": ("server", tuple(f"server/reply-{n}.wav" for n in (1, 2, 3))),
}
RUN = """
import runpy, sys
for path, argument in zip(sys.argv[1::2], sys.argv[2::2]):
    print(path, file=sys.stderr)  # the last one before a traceback is to blame
    sys.argv = [path, argument]
    runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.slow  # README's block and the commands of the built-in model are fast tests
def test_the_examples_run(tmp_path):
    assert set(OUTPUTS) == {path.name for path in EXAMPLES.glob("*.py")}
    arguments = [
        part for name, (argument, _) in OUTPUTS.items() for part in (str(EXAMPLES / name), argument)
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for _, files in OUTPUTS.values():
        for name in files:
            assert (tmp_path / name).stat().st_size > 10_000, name


def test_the_examples_import_public_names_only():
    for path in EXAMPLES.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and "chatterbox_opt" in (node.module or ""):
                assert node.module == "chatterbox_opt"
                assert {alias.name for alias in node.names} <= set(chatterbox_opt.__all__)
            elif isinstance(node, ast.Import):
                assert not any("chatterbox_opt" in alias.name for alias in node.names)
