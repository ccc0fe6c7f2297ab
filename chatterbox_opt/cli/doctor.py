"""The command ``doctor``: what this machine has, and what is missing for synthesis.

Responsible for its checks and remedies; it changes nothing. Not responsible for hardware detection
itself (engine/probe.py).
"""

from __future__ import annotations

import importlib.metadata
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
        good: whether synthesis works with it as it is.
        found: what was seen.
        remedy: what to do, or "".
    """

    what: str
    good: bool
    found: str
    remedy: str = ""


def examine(store: VoiceStore) -> list[Finding]:
    """Check everything that synthesis needs."""
    import torch

    checks = [
        Finding("python", sys.version_info >= (3, 10), sys.version.split()[0], "3.10 to 3.12"),
        _package("chatterbox-tts", "pip install chatterbox-tts"),
        Finding("torch", good=True, found=torch.__version__),
        _cuda(),
        _perth(),
        *_weights(),
        _voices(store),
        _converted(),
        *_profile(),
    ]
    return [Finding(c.what, c.good, c.found, "" if c.good else c.remedy) for c in checks]


def _package(name: str, remedy: str) -> Finding:
    try:
        return Finding(name, good=True, found=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, good=False, found="missing", remedy=remedy)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        try:
            gpu = probe.probe("cuda")
        except DeviceError as error:
            return Finding("cuda", good=False, found="an unusable GPU", remedy=str(error))
        memory = f"{gpu.free_mib:,} of {gpu.total_mib:,} MiB free"
        capability = hardware.format_capability(gpu.capability)
        facts = f"{gpu.name}, {memory}, capability {capability}"
        return Finding("cuda", good=True, found=facts)
    if shutil.which("nvidia-smi"):
        built_for = f"torch was built for CUDA {torch.version.cuda}"
        remedy = f"{built_for}; update the driver or see docs/install.md"
        return Finding("cuda", good=False, found="a driver, but torch sees no GPU", remedy=remedy)
    return Finding("cuda", good=True, found="no GPU: the CPU is used")


def _perth() -> Finding:
    from chatterbox_opt.audio.watermark import Watermark

    try:
        Watermark()
    except ChatterboxOptError as error:
        return Finding("watermark", good=False, found="missing", remedy=str(error))
    return Finding("watermark", good=True, found="PerTh works")


def _weights() -> list[Finding]:
    offline = " (HF_HUB_OFFLINE is set)" if registry.is_offline() else ""
    findings = []
    for name, repository in registry.HUB.items():
        here = registry.in_cache(repository)
        found = str(here) if here else f"not downloaded yet{offline}"
        remedy = "the first synth downloads 3 GB; without a network use --model DIR"
        findings.append(Finding(f"weights: {name}", here is not None, found, remedy))
    return findings


def _voices(store: VoiceStore) -> Finding:
    parent = next(p for p in (store.directory, *store.directory.parents) if p.exists())
    good = os.access(parent, os.W_OK)
    found = f"{len(store.names())} named, {store.computed()} computed in {store.directory}"
    return Finding("voices", good, found, "not writable: use --voice-cache DIR")


def _converted() -> Finding:
    cache = weight_cache.default()
    files = cache.entries()
    size = sum(path.stat().st_size for path in files) >> 20
    found = f"{len(files)} cached, {size:,} MiB in {cache.directory}" if cache.directory else "off"
    return Finding("converted weights", good=True, found=found)


def _profile() -> list[Finding]:
    try:
        resolved = plan.resolve(hardware.AUTO, probe.probe())
    except ChatterboxOptError as error:
        return [Finding("profile", good=False, found="none", remedy=str(error))]
    return [
        Finding("profile", good=True, found=f"{resolved.summary()} ({'; '.join(resolved.reasons)})")
    ]


def doctor(voice_cache: options.VoiceCache = None) -> None:
    """Check this machine: what was found, and what to fix."""
    findings = examine(options.voice_store_at(voice_cache))
    console.table(
        ("what", "state", "found", "remedy"),
        ((f.what, "ok" if f.good else "FIX", f.found, f.remedy) for f in findings),
    )
    raise typer.Exit(0 if all(f.good for f in findings) else 1)
