"""The command ``doctor``: checks what synthesis needs on this machine.

Responsible for its checks and remedies; changes nothing. Not responsible for hardware detection
(engine/probe.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass

import typer

from chatterbox_opt.checkpoints import registry, weight_cache
from chatterbox_opt.cli import console, options
from chatterbox_opt.config import hardware, plan
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError, DeviceError
from chatterbox_opt.voices.store import VoiceStore


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        good: whether it is as synthesis needs it.
        detail: what was detected.
        remedy: what to do, or "".
    """

    what: str
    good: bool
    detail: str
    remedy: str = ""


def examine(store: VoiceStore) -> list[Finding]:
    """Check everything that synthesis needs."""
    import torch

    checks = [
        Finding("python", sys.version_info >= (3, 10), sys.version.split()[0], "3.10 to 3.12"),
        _package("chatterbox-tts", "pip install chatterbox-tts"),
        Finding("torch", good=True, detail=torch.__version__),
        _cuda(),
        _perth(),
        *_weights(),
        _voices(store),
        _converted(),
        *_profile(),
    ]
    return [Finding(c.what, c.good, c.detail, "" if c.good else c.remedy) for c in checks]


def _package(name: str, remedy: str) -> Finding:
    import importlib.metadata  # imports email and zipfile: not at every command's start

    try:
        return Finding(name, good=True, detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, good=False, detail="missing", remedy=remedy)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        try:
            gpu = probe.probe("cuda")
        except DeviceError as error:
            return Finding("cuda", good=False, detail="an unusable GPU", remedy=str(error))
        memory = f"{gpu.free_mib:,} of {gpu.total_mib:,} MiB free"
        capability = hardware.format_capability(gpu.capability)
        facts = f"{gpu.name}, {memory}, capability {capability}"
        return Finding("cuda", good=True, detail=facts)
    if shutil.which("nvidia-smi"):
        built_for = f"torch was built for CUDA {torch.version.cuda}"
        remedy = f"{built_for}; update the driver or see docs/install.md"
        return Finding("cuda", good=False, detail="a driver, but torch sees no GPU", remedy=remedy)
    return Finding("cuda", good=True, detail="no GPU: the CPU is used")


def _perth() -> Finding:
    from chatterbox_opt.audio.watermark import Watermark

    try:
        Watermark()
    except ChatterboxOptError as error:
        return Finding("watermark", good=False, detail="missing", remedy=str(error))
    return Finding("watermark", good=True, detail="PerTh works")


def _weights() -> list[Finding]:
    offline = " (HF_HUB_OFFLINE is set)" if registry.is_offline() else ""
    findings = []
    for name, repository in registry.HUB.items():
        location = registry.in_cache(repository)
        detail = str(location) if location else f"not downloaded yet{offline}"
        remedy = "the first synth downloads 3 GB; without a network use --model DIR"
        findings.append(Finding(f"weights: {name}", location is not None, detail, remedy))
    return findings


def _voices(store: VoiceStore) -> Finding:
    places = (store.saved_directory, store.directory)
    parents = [next(p for p in (place, *place.parents) if p.exists()) for place in places]
    good = all(os.access(parent, os.W_OK) for parent in parents)
    saved = f"{len(store.names())} saved in {store.saved_directory}"
    detail = f"{saved}, {store.computed()} computed in {store.directory}"
    return Finding("voices", good, detail, "not writable: set CHATTERBOX_VOICES, --voice-cache DIR")


def _converted() -> Finding:
    cache = weight_cache.default()
    files = cache.entries()
    size = sum(path.stat().st_size for path in files) >> 20
    detail = f"{len(files)} cached, {size:,} MiB in {cache.directory}" if cache.directory else "off"
    return Finding("converted weights", good=True, detail=detail)


def _profile() -> list[Finding]:
    try:
        resolved = plan.resolve(hardware.AUTO, probe.probe())
    except ChatterboxOptError as error:
        return [Finding("profile", good=False, detail="none", remedy=str(error))]
    return [
        Finding(
            "profile", good=True, detail=f"{resolved.summary()} ({'; '.join(resolved.reasons)})"
        )
    ]


def doctor(voice_cache: options.VoiceCache = None) -> None:
    """Check this machine: what was found, and what to fix."""
    findings = examine(options.voice_store_at(voice_cache))
    console.table(
        ("what", "state", "found", "remedy"),
        ((f.what, "ok" if f.good else "FIX", f.detail, f.remedy) for f in findings),
    )
    raise typer.Exit(0 if all(f.good for f in findings) else 1)
