"""The package for a GPU machine: its size, PerTh's stripped wheel, and the start script."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers.common import ROOT

from benchmarks.gpu import luggage, strip_wheel


@pytest.fixture
def perth(tmp_path):
    """A wheel like PerTh's, its weights large."""
    weights = {
        "encoder.weight": torch.randn(64, 1024),
        "decoder.weight": torch.randn(64, 1024),
        "decoder.bias": torch.randn(64),
    }
    torch.save({"model": weights}, tmp_path / "net.pth.tar")
    body = (tmp_path / "net.pth.tar").read_bytes()
    record = "resemble_perth-1.0.1.dist-info/RECORD"
    wheel = tmp_path / "resemble_perth-1.0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(strip_wheel.CHECKPOINT, body)
        archive.writestr(record, f"{strip_wheel.CHECKPOINT},sha256=x,1\nperth/a.py,sha256=y,2\n")
    return wheel, weights


def test_a_stripped_wheel_has_the_same_encoder(perth, tmp_path, monkeypatch):
    wheel, weights = perth
    assert strip_wheel.strip_wheel(wheel) == 0, "it is small"
    monkeypatch.setattr(strip_wheel, "STRIPPED_BYTES", 1000)
    assert strip_wheel.strip_wheel(wheel) == 4 * 64 * 1024
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "extracted")
        record = archive.read("resemble_perth-1.0.1.dist-info/RECORD").decode()
    stripped = torch.load(tmp_path / "extracted" / strip_wheel.CHECKPOINT)["model"]
    assert torch.equal(stripped["encoder.weight"], weights["encoder.weight"])
    assert torch.equal(stripped["decoder.bias"], weights["decoder.bias"])
    assert not stripped["decoder.weight"].any()
    body = (tmp_path / "extracted" / strip_wheel.CHECKPOINT).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
    assert f"{strip_wheel.CHECKPOINT},sha256={digest},{len(body)}\n" in record
    assert "sha256=x," not in record and "perth/a.py,sha256=y,2" in record


def test_a_wheel_of_another_version_is_not_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(strip_wheel, "STRIPPED_BYTES", 0)
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", "text")
    before = wheel.read_bytes()
    with pytest.raises(ValueError, match="another version"):
        strip_wheel.strip_wheel(wheel)
    assert wheel.read_bytes() == before


def test_a_package_that_is_too_large_is_an_error(tmp_path, monkeypatch):
    root, folder = tmp_path / "tree", tmp_path / "tree" / ".whl"
    folder.mkdir(parents=True)
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    (root / ".gitignore").write_text(".whl/\nignored\n")
    (root / "ignored").write_bytes(bytes(5000))
    (root / "new.py").write_bytes(bytes(300))
    (folder / "resemble_perth-1.whl").write_bytes(bytes(700))
    (root / "shared").mkdir()
    (root / "shared" / "notes").write_bytes(bytes(2000))
    assert luggage.upload_bytes(folder, root) == len(".whl/\nignored\n") + 300 + 700 + 2000
    monkeypatch.setattr(luggage, "MAX_BYTES", 10)
    monkeypatch.setattr(luggage, "download", lambda _: [])
    monkeypatch.setattr(luggage, "strip_wheel", lambda _: 0)
    with pytest.raises(luggage.LuggageError, match="too large"):
        list(luggage.make(folder, python=None))


def test_a_failed_compilation_of_kernels_is_no_error(tmp_path):
    (tmp_path / luggage.KERNELS).write_text("of other sources")
    message = luggage.compile_kernels(tmp_path, "false")
    assert message == "kernels were not compiled in advance: no file"
    assert not (tmp_path / luggage.KERNELS).exists()


@pytest.mark.parametrize("python", [None, "false"])
def test_a_package_without_compiled_kernels_is_made_with_a_warning(tmp_path, monkeypatch, python):
    (tmp_path / "resemble_perth-1.whl").write_bytes(b"")
    monkeypatch.setattr(luggage, "download", lambda folder: [])
    monkeypatch.setattr(luggage, "strip_wheel", lambda wheel: 0)
    monkeypatch.setattr(luggage, "upload_bytes", lambda folder: 0)
    assert luggage.NO_KERNELS in luggage.make(tmp_path, python=python)
    (tmp_path / luggage.KERNELS).write_bytes(b"")
    assert luggage.NO_KERNELS not in luggage.make(tmp_path, python=None)


def test_wheels_are_pinned():
    assert luggage.file_of("s3tokenizer==0.3.0") == "s3tokenizer-0.3.0-*.whl"
    assert luggage.file_of("chatterbox-tts==0.1.7") == "chatterbox_tts-0.1.7-*.whl"
    assert all("==" in r for r in luggage.WHEELS)
    ignored = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", ".whl/x"])
    assert ignored.returncode == 0


def test_the_start_script(tmp_path):
    """From any folder, with any arguments: here with an unknown stage."""
    folder = tmp_path / ".whl"
    folder.mkdir()
    (folder / "run.sh").write_text(luggage.START)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    script = ["bash", str(folder / "run.sh"), "no-such-stage"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert "unknown stage 'no-such-stage'; known: ceilings" in done.stderr
