"""The wheel contains the profiles and py.typed: build, install into a new environment, list them."""

from __future__ import annotations

import site
import subprocess
import sys
import sysconfig
import venv

from helpers.common import ROOT


def test_installed_wheel_lists_the_profiles(tmp_path):
    script = (
        "import sys; from hatchling.builders.wheel import WheelBuilder;"
        "print(list(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard']))[0])"
    )
    built = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), str(tmp_path)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    home = tmp_path / "fresh"
    venv.create(home, with_pip=False)
    packages = sysconfig.get_path("purelib", vars={"base": str(home)})
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    installed = subprocess.run([*pip, built.stdout.strip()], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    # dependencies come from this environment; its .pth files, which add this checkout, are not read
    with open(f"{packages}/borrowed.pth", "w") as file:
        file.write("\n".join(site.getsitepackages()))
    listed = subprocess.run(
        [home / "bin" / "chatterbox-opt", "profiles"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert listed.returncode == 0, listed.stderr
    for name in ("rtx4090", "rtx3080", "gtx1080", "dev", "memory-limited", "cpu"):
        assert name in listed.stdout
    where = subprocess.run(
        [python, "-c", "import chatterbox_opt, pathlib; print(found := chatterbox_opt.__file__);"
         "assert pathlib.Path(found).with_name('py.typed').is_file()"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert where.stdout.startswith(str(home)) and where.returncode == 0, where.stderr
