"""Measures the speed, memory and quality of each configuration on this machine.

Responsible for measuring: every row is a process of its own that loads one configuration and
waits; rows alternate (A B C A B C ...), so that drift of the machine affects all alike. Not
responsible for tables and files (bench/report.py) or the command line.

All rows generate the same forced speech tokens, so none is faster by generating fewer.
``upstream`` is the installed chatterbox-tts: its class of that kind of model, its own loop, its own
S3Gen, in its own process.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from chatterbox_opt.bench import cold_start, roofline
from chatterbox_opt.bench.backends import FLOW, ROWS, STANDARD, UPSTREAM
from chatterbox_opt.bench.report import STAGES, total_seconds
from chatterbox_opt.bench.row_process import RowProcess
from chatterbox_opt.bench.timing import BenchJob
from chatterbox_opt.checkpoints import flows, registry
from chatterbox_opt.checkpoints.families import RANDOM_KINDS
from chatterbox_opt.checkpoints.registry import DEFAULT, locate
from chatterbox_opt.config.config_file import is_random
from chatterbox_opt.config.model_config import TOKEN_RATE
from chatterbox_opt.config.profile import TURBO_FLOW, load_profile
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ChatterboxOptError, InputError
from chatterbox_opt.text.languages import check_model

NOISY = 0.15  # range of the total time, relative to its median, above which a row is marked
VOICE = "voice"  # what the prefill of the first text in a voice takes in addition
CPU_ROWS = (UPSTREAM, STANDARD, "bfloat16", "int8", "int4")
CUDA_ROWS = (UPSTREAM, STANDARD, "bfloat16", "float16", "+compile", "+offload", "+int8")


def choose_rows(
    rows: str | None,
    profiles: Sequence[str],
    device: str,
    *,
    tiny: bool,
    flow: bool = False,
) -> list[str]:
    """Names of the rows to measure: the requested ones, or the device's default, and ``profiles``.

    Args:
        flow: whether the default has a row with Turbo's flow.

    Raises:
        InputError: an unknown row; ProfileError: an unknown profile.
    """
    on_gpu = probe.probe(device).device == "cuda"
    default = CUDA_ROWS if on_gpu else CPU_ROWS
    if flow:
        default = (*default, "+compile+flow" if on_gpu else "int8+flow")
    # upstream's shapes are hard-coded: it cannot load tiny weights
    chosen = rows.split(",") if rows else [n for n in default if not (tiny and n == UPSTREAM)]
    if unknown := [name for name in chosen if name not in (UPSTREAM, *ROWS)]:
        raise InputError(f"unknown row '{unknown[0]}'; known: {UPSTREAM}, {', '.join(ROWS)}")
    for name in profiles:
        load_profile(name)
    return [*chosen, *profiles]


@contextmanager
def weights(model: str | None, *, tiny: bool, on_progress: Callable[[str], None]) -> Iterator[str]:
    """Yield the model to measure; of a name that is not downloaded, temporary random weights.

    Args:
        model: None is the default one; a directory or another revision is used as it is.
        tiny: random weights for every name of which some can be made.

    Raises:
        InputError: neither a known name nor a directory.
    """
    name = model or DEFAULT
    registry.check_name(name)
    if name not in RANDOM_KINDS or not (tiny or registry.must_download(name)):
        yield name
        return
    from chatterbox_opt.checkpoints.random_weights import make

    size = "tiny" if tiny else "full"
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as directory:
        on_progress(f"making {size} random weights: speed does not depend on the values")
        make(Path(directory), size, seed=0, kind=name)
        yield directory


def has_flow_row(model: str | None, flow: str | None) -> bool:
    """Whether Turbo's flow is a row by default: it is asked for, or here, or will be random.

    Args:
        model, flow: as requested; None is the default.

    Raises:
        InputError: the flow is asked for, and the model cannot have it.
    """
    name = model or DEFAULT
    if flow is not None:
        flows.check(name, flow)
        return True
    if not flows.can_have(name):
        return False
    return flows.must_download(TURBO_FLOW) is None or _is_random(name)


def _is_random(model: str) -> bool:
    if model in RANDOM_KINDS:
        return registry.must_download(model) is not None
    return Path(model).is_dir() and is_random(Path(model))


@contextmanager
def flow_weights(
    model: str, flow: str | None, rows: Sequence[str], on_progress: Callable[[str], None]
) -> Iterator[str]:
    """Yield the flow of rows that have another one; with random weights, a random one.

    Args:
        model: that is measured; a directory if it is random.
        flow: as requested.
    """
    used = any("flow_model" in ROWS.get(name, {}) for name in rows)
    if flow is not None or not used or not _is_random(model):
        yield flow or TURBO_FLOW
        return
    from chatterbox_opt.checkpoints.random_weights import make_flow

    size = "full" if locate(model).config.t3.is_large else "tiny"
    with tempfile.TemporaryDirectory(prefix="chatterbox-opt-") as directory:
        on_progress(f"making a {size} random flow of Turbo")
        make_flow(Path(directory), size, seed=0)
        yield directory


class _RowProcesses:
    """The processes of a measurement. A row that fails is excluded, and the others continue."""

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self.rows: list[RowProcess] = []
        self.failed: dict[str, str] = {}
        self._on_progress = on_progress

    def load(self, job: BenchJob, names: Sequence[str]) -> None:
        """Start them, one after another.

        Raises:
            ChatterboxOptError: none can be measured here; the error of the first one.
        """
        for name in names:
            self._on_progress(f"loading {name}")
            with self._excluding(name):
                self.rows.append(RowProcess(job, name))
        if not self.rows:
            raise ChatterboxOptError(next(iter(self.failed.values()), "no rows to measure"))

    def run_alternating(self, runs: int, device: torch.device) -> None:
        """Run them one after the other: warm-ups, then ``runs`` measured runs."""
        for run in range(1 - max(row.warm_ups for row in self.rows), runs + 1):
            for row in self.active():
                if run <= -row.warm_ups:
                    continue
                self._on_progress(f"{'warm-up' if run < 1 else f'run {run} of {runs}'}: {row.name}")
                with self._excluding(row.name):
                    seconds = row.run()
                    if run >= 1:
                        row.laps.append(seconds)
                        # bandwidth changes when other programs use memory, too
                        row.reads.append(roofline.read_gb_s(device))

    def active(self) -> list[RowProcess]:
        """Those that have not failed."""
        return [row for row in self.rows if row.name not in self.failed]

    def finish(self) -> None:
        """End them; see ``RowProcess.finish``."""
        for row in self.active():
            with self._excluding(row.name):
                row.finish()

    def kill(self) -> None:
        """End the processes that still run."""
        for row in self.rows:
            row.kill()

    @contextmanager
    def _excluding(self, name: str) -> Iterator[None]:
        try:
            yield
        except ChatterboxOptError as error:
            self._on_progress(f"left out: {error}")
            self.failed[name] = str(error)


def measure(
    job: BenchJob, names: Sequence[str], on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all rows; return the report (see bench/report.py for its columns).

    Args:
        on_progress: callback, called with a line of progress.

    Raises:
        InputError: the model does not know the language, or there is no program to start cold.
        ChatterboxOptError: no row could be measured.
    """
    checkpoint = locate(job.model)
    check_model(job.language, checkpoint.config)
    if job.cold:
        cold_start.check(job, names)
    on_progress("measuring memory bandwidth and matrix products")
    facts = roofline.machine_facts(job, checkpoint)
    device = torch.device(probe.probe(job.device).device)
    rows = _RowProcesses(on_progress)
    try:
        rows.load(job, names)
        rows.run_alternating(job.runs, device)
        rows.finish()
    finally:
        rows.kill()
    measured = rows.active()
    if not measured:
        raise ChatterboxOptError(next(iter(rows.failed.values())))
    reads = list(itertools.chain.from_iterable(row.reads for row in measured))
    facts |= {"read_gb_s": statistics.median(reads)}
    facts |= {"ceiling_tokens_per_second": roofline.steps_per_second(facts, reads)}
    table = _table(job, facts, measured)
    starts = (
        cold_start.measure(job, [row.name for row in measured], on_progress) if job.cold else []
    )
    unmeasured: dict[str, Any] = dict.fromkeys(cold_start.FIGURES)
    for entry, figures in itertools.zip_longest(table, starts, fillvalue=unmeasured):
        entry |= figures
    return {"card": facts, "rows": table, "failed": rows.failed}


def _table(
    job: BenchJob, facts: Mapping[str, Any], rows: Sequence[RowProcess]
) -> list[dict[str, Any]]:
    qualities = {row.name: row.quality for row in rows}
    table = []
    for row in rows:
        exact = qualities.get(STANDARD, {})
        if row.name.endswith(FLOW):  # another flow's mel is compared with that flow's in float32
            of_t3 = {name: value for name, value in exact.items() if name != "mel"}
            exact = qualities.get(STANDARD + FLOW) or of_t3
        ceiling = roofline.steps_per_second(facts, row.reads)[row.dtype]
        entry = _entry(job, row.laps, ceiling) | row.usage
        entry |= {"name": row.name, "plan": row.plan, "load_seconds": row.load_seconds}
        entry |= {"attention_kernels": row.attention, "quality": closeness(row.quality, exact)}
        table.append(entry)
    add_ratios(table, "vs_upstream", UPSTREAM)
    add_ratios(table, "vs_standard", STANDARD)
    return table


def _entry(job: BenchJob, laps: list[dict[str, float]], ceiling: float) -> dict[str, Any]:
    entry = row_figures(laps, len(job.tokens))
    return entry | {
        "t3_share_of_ceiling": entry["t3_tokens_per_second"] / ceiling,
        # there is one chunk, so the first audio is all of it
        "first_audio_seconds": entry["synthesis_seconds"],
    }


def row_figures(laps: Sequence[Mapping[str, float]], tokens: int) -> dict[str, Any]:
    """The columns of a row that depend on its runs only.

    Args:
        laps: seconds by stage of each run.
        tokens: generated in each run.
    """
    median = {stage: statistics.median(lap[stage] for lap in laps) for stage in STAGES}
    totals = [total_seconds(lap) for lap in laps]
    synthesis, audio = statistics.median(totals), tokens / TOKEN_RATE
    parts = {"t3": median["prefill"] + median["decode"]}
    parts |= {stage: median[stage] for stage in STAGES[2:]}
    shares = {stage: seconds / sum(parts.values()) for stage, seconds in parts.items()}
    largest = max(shares, key=shares.__getitem__)
    return {
        "shares": shares,
        "limit": f"{largest} {shares[largest]:.0%}",
        "t3_tokens_per_second": (tokens - 1) / median["decode"],
        "prefill_seconds": median["prefill"],
        "voice_seconds": statistics.median(lap.get(VOICE, 0.0) for lap in laps),
        "flow_seconds": median["flow"],
        "vocoder_seconds": median["vocoder"],
        "watermark_seconds": median["watermark"],
        "synthesis_seconds": synthesis,
        "audio_seconds": audio,
        "realtime_x": audio / synthesis,
        "noisy": (max(totals) - min(totals)) / synthesis > NOISY,
    }


def add_ratios(table: list[dict[str, Any]], column: str, base: str) -> None:
    """Add each row's speedup over the row named ``base``, or None without one."""
    reference = next((row for row in table if row["name"] == base), None)
    for row in table:
        row[column] = reference and {
            "t3": row["t3_tokens_per_second"] / reference["t3_tokens_per_second"],
            "flow": reference["flow_seconds"] / row["flow_seconds"],
            "vocoder": reference["vocoder_seconds"] / row["vocoder_seconds"],
            "synthesis": reference["synthesis_seconds"] / row["synthesis_seconds"],
        }


def closeness(
    quality: Mapping[str, torch.Tensor], exact: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Compare with float32 on the same forced tokens.

    Returns:
        top1: share of steps with the same most likely token; kl: mean KL divergence of the
        distributions, in nats; log_mel_cosine: of the flow's mel; wer: word error rate of some
        sentences without forced tokens, None without a recognizer or with random weights.
    """
    if not quality or not exact:
        return dict.fromkeys(("top1", "kl", "log_mel_cosine", "wer"))
    logp, exact_logp = (torch.log_softmax(q["logits"], dim=-1) for q in (quality, exact))
    same = (logp.argmax(-1) == exact_logp.argmax(-1)).float().mean().item()
    kl = (exact_logp.exp() * (exact_logp - logp)).sum(-1).mean().item()
    wer = None
    if "words" in quality:
        errors, words = quality["words"].tolist()
        wer = errors / words
    cosine = None
    if "mel" in exact:
        mels = (quality["mel"].flatten(), exact["mel"].flatten())
        cosine = torch.nn.functional.cosine_similarity(*mels, dim=0).item()
    return {"top1": same, "kl": kl, "log_mel_cosine": cosine, "wer": wer}
