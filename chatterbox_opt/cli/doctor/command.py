"""The command ``doctor``: checks what synthesis needs on this machine.

Responsible for its checks and remedies; changes nothing. Not responsible for hardware detection
(engine/probe.py) or for the facts that are no checks (machine.py).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import typer

from chatterbox_opt.checkpoints import hub, registry
from chatterbox_opt.cli import options
from chatterbox_opt.cli.doctor import machine
from chatterbox_opt.cli.terminal import console, tables
from chatterbox_opt.config import hardware, plan
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError, DeviceError
from chatterbox_opt.utils.paths import nearest_existing
from chatterbox_opt.voices.store import VoiceStore


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: what was checked.
        good: whether synthesis works with it.
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
        _fact("cpu", machine.cpu()),
        _fact("memory", machine.memory()),
        _gpu(),
        _kernels(),
        _perth(),
        _pico(),
        *map(_weights, (n for n in registry.HUB if n == registry.DEFAULT or registry.cached(n))),
        _others(),
        _fact("languages", machine.languages()),
        _fact("formats", machine.soundfile_formats()),
        _fact("more formats", machine.decoders()),
        _voices(store),
        *(_fact(name, detail) for name, detail in machine.caches(store).items()),
        _profile(),
    ]
    return [Finding(c.what, c.good, c.detail, "" if c.good else c.remedy) for c in checks]


def _fact(what: str, detail: str) -> Finding:
    return Finding(what, good=True, detail=detail)


def _package(name: str, remedy: str) -> Finding:
    version = machine.version(name)
    return Finding(name, good=version is not None, detail=version or "missing", remedy=remedy)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        try:
            gpu = probe.probe("cuda")
        except DeviceError as error:
            return Finding("gpu", good=False, detail="an unusable GPU", remedy=str(error))
        memory = f"{gpu.free_mib:,} of {gpu.total_mib:,} MiB free"
        capability = hardware.format_capability(gpu.capability)
        return _fact("gpu", f"{gpu.name}, {memory}, capability {capability}")
    if shutil.which("nvidia-smi"):
        built_for = f"torch was built for CUDA {torch.version.cuda}"
        remedy = f"{built_for}; update the driver or see docs/install.md"
        return Finding("gpu", good=False, detail="a driver, but torch sees no GPU", remedy=remedy)
    return _fact("gpu", "none: the CPU is used")


def _kernels() -> Finding:
    """The CPU kernels; a CPU without the instructions is slower and works."""
    numba = machine.version("numba")
    if numba is None:
        return Finding("numba", good=False, detail="missing", remedy="pip install numba")
    unsupported = probe.probe("cpu").unsupported
    return _fact("numba", f"{numba}; " + "; ".join(_support(unsupported)))


def _support(unsupported: Mapping[str, str]) -> list[str]:
    reasons = {dtype: unsupported.get(dtype) for dtype in ("int8", "bfloat16")}
    return [f"{dtype} kernels {f'off: {why}' if why else 'work'}" for dtype, why in reasons.items()]


def _perth() -> Finding:
    from chatterbox_opt.audio.watermark import Watermark

    try:
        Watermark()
    except ChatterboxOptError as error:
        return Finding("watermark", good=False, detail="missing", remedy=str(error))
    return _fact("watermark", "PerTh works")


def _pico() -> Finding:
    name = registry.BUILT_IN[0]
    try:
        registry.locate(name)
    except ChatterboxOptError as error:
        return Finding(f"model: {name}", good=False, detail=str(error), remedy="install again")
    return _fact(f"model: {name}", "built in")


def _weights(name: str) -> Finding:
    """A model of the hub; that it is not here is no fault, as there is a built-in one."""
    if registry.cached(name):
        try:
            location = registry.download(name)  # as all is here, only sizes are checked
        except ChatterboxOptError as error:
            return Finding(f"model: {name}", good=False, detail="damaged", remedy=str(error))
        return _fact(f"model: {name}", tables.short_path(location))
    if hub.is_offline():
        remedy = "HF_HUB_OFFLINE is set: use --model DIR"
    else:
        remedy = "the first synth downloads 3 GB; without a network use --model DIR"
    return _fact(f"model: {name}", f"not downloaded yet; {remedy}")


def _others() -> Finding:
    """The models of the family that are not on disk."""
    absent = [n for n in registry.HUB if n != registry.DEFAULT and not registry.cached(n)]
    if not absent:
        return _fact("other models", "all are here")
    return _fact("other models", f"not downloaded: {', '.join(absent)} (models get NAME)")


def _voices(store: VoiceStore) -> Finding:
    places = (store.saved_directory, store.directory)
    good = all(os.access(nearest_existing(place), os.W_OK) for place in places)
    saved = f"{len(store.names())} saved in {tables.short_path(store.saved_directory)}"
    detail = f"{saved}, {store.computed()} computed in {tables.short_path(store.directory)}"
    return Finding("voices", good, detail, "not writable: set CHATTERBOX_VOICES, --voice-cache DIR")


def _profile() -> Finding:
    try:
        resolved = plan.resolve(hardware.AUTO, probe.probe())
    except ChatterboxOptError as error:
        return Finding("profile", good=False, detail="none", remedy=str(error))
    return _fact("profile", f"{resolved.summary()} ({resolved.reasons[0]})")


def doctor(voice_cache: options.VoiceCache = None, as_json: options.AsJson = False) -> None:
    """Check this machine: what was found, and what to fix.

    Exits with 1 if something has to be fixed. No GPU and weights that are not downloaded yet are
    no faults.
    """
    reporter = console.Reporter()
    console.show_log(reporter)
    with reporter.waiting("examining this machine"):
        findings = examine(options.voice_store_at(voice_cache))
    healthy = all(finding.good for finding in findings)
    if as_json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        console.print_json({"healthy": healthy, "checks": checks})
    else:
        console.table(
            ("what", "state", "found"),
            (
                (f.what, "ok" if f.good else "FIX", "; ".join(filter(None, (f.detail, f.remedy))))
                for f in findings
            ),
        )
    raise typer.Exit(0 if healthy else 1)
