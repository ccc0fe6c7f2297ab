"""Everything that needs a card, in one run: is it right, how fast is it, does it leak.

    python benchmarks/gpu_check.py --json benchmarks/results/NAME.json

Needs no real weights (random ones of the true shapes are made) and no network. The file is that of
``chatterbox-opt bench`` with a ``checks`` section besides. Exits 1 if a check failed.
"""

from __future__ import annotations

import functools
import gc
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, cast

import batch
import numpy as np
import torch
import torch.nn.functional as F
import typer

from chatterbox_opt import Engine, Sampling, bench, fused_step, hardware
from chatterbox_opt.beside import Here, Sound
from chatterbox_opt.cache import products
from chatterbox_opt.card import FAILURES, CudaRecorder
from chatterbox_opt.decoding import Eager, Way, decode
from chatterbox_opt.errors import InputError
from chatterbox_opt.graphs import Captured, Recorder, Recordings
from chatterbox_opt.offload import Residency
from chatterbox_opt.pipeline import Pipeline
from chatterbox_opt.plan import HERE
from chatterbox_opt.reader import text_tokens
from chatterbox_opt.rows import Direct
from chatterbox_opt.shapes import FlowShape
from chatterbox_opt.slots import Utterance
from chatterbox_opt.subjects import SENTENCE, Clock, Job, forced_tokens
from chatterbox_opt.t3 import T3, Prompt

TEXTS = ("hello.", "a much longer sentence, with a comma in it.", "one two three four.", "no!")
PRODUCTS = {"qkv": "norm", "out": "residual", "gate_up": "gated", "down": "residual"}
UPSTREAM_LINES = 3  # of a batch
DRIFT = 1.2  # the last tenth may take so much more time than the first
LIBRARIES = 64 << 20  # bytes that cuBLAS keeps for itself as long as the process lives
CLOSE = 1e-3  # float32, padded and replayed against launched: mels, and waves of one mel


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done.

    Attributes:
        said, tokens: utterances whose tokens are compared, and the fewest of each.
        lengths: seconds of sound.
        texts: characters of texts for the prefill.
        spans: positions of the cache, for the kernels of one query.
        frames: of the flow, for its attention.
        rows: of a step, for its products.
        drifting, drifted: utterances of the leak and drift check, and the fewest tokens of each.
        beside: lines whose sound is made beside T3 and compared.
        lines: of the batch.
    """

    said: int = 12
    tokens: int = 60
    lengths: tuple[float, ...] = (2.0, 5.0, 10.0, 20.0, 40.0)
    texts: tuple[int, ...] = (10, 100, 300)
    spans: tuple[int, ...] = (256, 512, 1024)
    frames: tuple[int, ...] = (500, 1000, 2000)
    rows: tuple[int, ...] = (2, 48)
    drifting: int = 200
    drifted: int = 50
    beside: int = 40
    lines: int = 64


def pipeline_of(engine: Engine) -> Pipeline:
    """The engine's own stages."""
    return cast(Pipeline, engine._speaker)


@contextmanager
def on_device(engine: Engine, stage: str) -> Iterator[Any]:
    """A stage, there."""
    residency: Residency = pipeline_of(engine).residency
    with residency(stage) as module:
        yield module


def utterance(engine: Engine, i: int, text: str, tokens: int) -> Utterance:
    """A text with the i-th set of knobs, no two alike."""
    pipeline, voice = pipeline_of(engine), engine.voice()
    sampling = Sampling(
        seed=i,
        temperature=(0.0, 0.8, 1.7)[i % 3],
        cfg_weight=(0.5, 0.0, 1.0, 0.3)[i % 4],
        exaggeration=0.25 * (i % 5),
        min_p=(0.05, 0.0, 0.3)[i % 3],
        top_k=(0, 0, 0, 12)[i % 4],
        repetition_penalty=(1.2, 1.0, 2.0)[i % 3],
        max_tokens=tokens,
    )
    prompt = Prompt(text_tokens(pipeline.tokenizer, text), voice.speaker, voice.prompt)
    generator = torch.Generator(pipeline.device).manual_seed(i)
    return Utterance(prompt, sampling, generator, lambda count: None)


def utterances(engine: Engine, count: int, tokens: int) -> list[Utterance]:
    """Texts with knobs of every kind."""
    return [utterance(engine, i, TEXTS[i % len(TEXTS)], tokens + i) for i in range(count)]


def said(t3: T3, way: Way, spoken: list[Utterance], slots: int) -> list[tuple[int, ...]]:
    """Tokens of each, in their order."""
    left = iter(spoken)
    found = {
        s.utterance: s for s in decode(t3, way.slots(t3, slots, 2), lambda: next(left, None), way)
    }
    return [found[one].tokens for one in spoken]


def token_parity(
    engine: Engine, way: Way, plain: Way, slots: int, count: int, tokens: int
) -> dict[str, Any]:
    """Steps of two ways, ``slots`` at once: exact, whatever the knobs."""
    with on_device(engine, "t3") as t3:
        expected, found = (
            said(t3, how, utterances(engine, count, tokens), slots) for how in (plain, way)
        )
    return {
        "equal": sum(a == b for a, b in zip(expected, found, strict=True)),
        "of": count,
        "tokens": sum(map(len, expected)),
        "good": expected == found,
    }


@contextmanager
def float32_convolutions() -> Iterator[None]:
    """Have cuDNN multiply all 24 bits, where by default it takes 11 of them (TF32): another
    algorithm would be another sound."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


@contextmanager
def launched(engine: Engine) -> Iterator[None]:
    """Have flow and vocoder launched, not replayed."""
    pipeline = pipeline_of(engine)
    stages: list[Any] = [pipeline.residency.module(name) for name in ("flow", "vocoder")]
    before = [stage.through for stage in stages]
    for stage in stages:
        stage.through = Direct()
    try:
        yield
    finally:
        for stage, through in zip(stages, before, strict=True):
            stage.through = through


def sound_parity(engine: Engine, seconds: float = 3.1) -> dict[str, Any]:
    """Replayed and padded flow and vocoder against launched ones: the largest difference of the
    mel, and of the wave of one mel."""
    pipeline, voice = pipeline_of(engine), engine.voice().to(pipeline_of(engine).device)
    tokens = torch.tensor(forced_tokens(seconds), device=pipeline.device)

    def generator() -> torch.Generator:
        return torch.Generator(pipeline.device).manual_seed(0)

    def mel() -> torch.Tensor:
        with on_device(engine, "flow") as flow:
            return cast(torch.Tensor, flow([tokens], [voice], [generator()])[0])

    def wave(mel: torch.Tensor) -> torch.Tensor:
        with on_device(engine, "vocoder") as vocoder:
            return cast(torch.Tensor, vocoder([mel], [generator()])[0])

    with float32_convolutions():
        with launched(engine):
            plain_mel = mel()
            plain_wave = wave(plain_mel)
        mels = max((mel() - plain_mel).abs().max().item() for _ in range(3))
        waves = max((wave(plain_mel) - plain_wave).abs().max().item() for _ in range(3))
    exact = engine.plan.flow == "float32"
    return {"mel": mels, "wave": waves, "good": waves < CLOSE and (mels < CLOSE or not exact)}


def prefill_by_length(
    engine: Engine, t3: T3, ways: Mapping[str, Way], texts: tuple[int, ...]
) -> list[dict[str, float]]:
    """Seconds from a prompt to its logits by the length of its text, warm."""
    device, rows = pipeline_of(engine).device, []
    for characters in texts:
        text = (TEXTS[1] * 20)[:characters]
        row: dict[str, float] = {"characters": characters}
        for name, way in ways.items():
            slots, spoken = way.slots(t3, 1, 2), utterance(engine, 0, text, 2)
            with torch.inference_mode():
                for _ in range(4):  # met, recorded, replayed; the last counts
                    clock = Clock(device)
                    slots.enter(0, spoken, t3, way.prefill(t3), way.stride)
                    clock.lap(name)
            row |= clock.seconds
        rows.append(row)
    return rows


def s3gen_by_length(engine: Engine, lengths: tuple[float, ...]) -> list[dict[str, float]]:
    """Seconds of flow and vocoder, warm, for sound of several lengths."""
    pipeline, voice = pipeline_of(engine), engine.voice().to(pipeline_of(engine).device)
    rows = []
    for seconds in lengths:
        tokens = torch.tensor(forced_tokens(seconds), device=pipeline.device)
        for _ in range(4):  # met, recorded, replayed; the last counts
            generator = torch.Generator(pipeline.device).manual_seed(0)
            clock = Clock(pipeline.device)
            with on_device(engine, "flow") as flow:
                mels = flow([tokens], [voice], [generator])
            clock.lap("flow")
            with on_device(engine, "vocoder") as vocoder:
                vocoder(mels, [generator])
            clock.lap("vocoder")
        rows.append({"audio_seconds": seconds} | clock.seconds)
    return rows


def warm_up_seconds(engine: Engine) -> dict[str, float]:
    """The first synthesis, the second (which records) and the third."""
    times = {}
    for name in ("first", "second", "third"):
        start = time.perf_counter()
        engine.synthesize(SENTENCE, None, Sampling(seed=0, max_tokens=250))
        times[name] = time.perf_counter() - start
    return times


def drift(engine: Engine, count: int, tokens: int) -> dict[str, Any]:
    """Many short utterances: memory and time of the first and last tenth."""
    tenth, times, held = count // 10, [], []
    for i in range(count):
        start = time.perf_counter()
        engine.synthesize(TEXTS[i % 4], None, Sampling(seed=i, max_tokens=tokens + i % 7))
        times.append(time.perf_counter() - start)
        held.append(allocated())
    grown = held[-1] - max(held[: 2 * tenth])
    first, last = sum(sorted(times[tenth : 2 * tenth])), sum(times[-tenth:])
    return {
        "utterances": count,
        "grown_mib": grown / 2**20,
        "last_tenth_over_second": last / first,
        "good": grown <= 2**20 and last <= DRIFT * first,
    }


def allocated() -> int:
    """Bytes of tensors on the card."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def decode_kernels(
    t3: T3, record: Recorder, spans: tuple[int, ...], *, fused: bool = False
) -> list[dict[str, Any]]:
    """Microseconds of one query's attention by kernel; recorded, as the step is.

    Args:
        fused: whether the kernel of our own can be run here.
    """
    shape, rows = t3.shape, []
    device, dtype = t3.like.device, t3.dtype
    for span in spans:
        q = torch.randn(2, shape.heads, 1, shape.head_dim, device=device, dtype=dtype)
        k, v = (
            torch.randn(2, shape.heads, span, shape.head_dim, device=device, dtype=dtype)
            for _ in range(2)
        )
        visible = torch.ones(2, 1, 1, span, dtype=torch.bool, device=device)
        places = torch.full((2,), span - 1, device=device)
        candidates = {
            "sdpa": functools.partial(F.scaled_dot_product_attention, q, k, v, visible),
            "products": functools.partial(products, q, k, v, visible),
        }
        if fused:
            from chatterbox_opt import kernels  # Triton is not everywhere

            qkv = torch.randn(2, 3 * shape.width, device=device, dtype=dtype)
            for turn in (kernels.KEYS // 2, kernels.KEYS):
                candidates[f"fused, {turn} a turn"] = functools.partial(
                    kernels.attend, qkv, t3.rope(places), k, v, places, turn
                )
        row: dict[str, Any] = {"span": span}
        row |= {name: microseconds(record, once, device, 30) for name, once in candidates.items()}
        rows.append(row)
    return rows


def frame_kernels(
    shape: FlowShape,
    record: Recorder,
    device: torch.device,
    frames: tuple[int, ...],
    *,
    fused: bool,
) -> list[dict[str, Any]]:
    """Microseconds of the flow's attention by kernel, in halves: two rows, a tenth is padding.

    Args:
        fused: whether the kernel of our own can be run here.
    """
    found = []
    for count in frames:
        sizes = (2, count, 3, shape.estimator_heads, shape.estimator_head_dim)
        qkv = torch.randn(sizes, device=device, dtype=torch.float16)
        q, k, v = qkv.transpose(1, 3).unbind(2)
        lengths = torch.full((2,), count - count // 10, dtype=torch.int32, device=device)
        mask = (torch.arange(count, device=device) < lengths[:, None])[:, None, None]
        candidates = {
            "sdpa, all": functools.partial(F.scaled_dot_product_attention, q, k, v),
            "sdpa, masked": functools.partial(F.scaled_dot_product_attention, q, k, v, mask),
        }
        if fused:
            from chatterbox_opt import flow_kernels  # Triton is not everywhere

            candidates["fused"] = functools.partial(flow_kernels.attend, q, k, v, lengths)
        row: dict[str, Any] = {"frames": count}
        row |= {name: microseconds(record, once, device, 30) for name, once in candidates.items()}
        found.append(row)
    return found


def microseconds(
    record: Recorder, once: Callable[[], Any], device: torch.device, times: int
) -> float:
    """Of some work, recorded so many times in a row: one of a kernel would be that of a launch."""

    def often() -> None:
        for _ in range(times):
            once()

    recordings = Recordings(record, "some work")
    recording = recordings.find("once", None)
    best = bench._best(functools.partial(recordings.run, recording, often), device)
    return 1e6 * best / times if recording.replay else math.nan  # a launch's time says nothing


def step_products(t3: T3, record: Recorder, rows: tuple[int, ...]) -> list[dict[str, Any]]:
    """Microseconds of a layer's products, with what stands around them, by tile; through all
    layers, so that no matrix waits in the cache. To choose ``kernels.tiles`` by."""
    from chatterbox_opt import kernels  # Triton is not everywhere

    found, device, usual = [], t3.like.device, kernels.tiles
    for (name, more), count in product(PRODUCTS.items(), rows):
        matrices = [fused_step.matrix(getattr(block, name)) for block in t3.blocks]
        x = torch.randn(count, matrices[0][0].shape[1], device=device, dtype=t3.dtype)
        around: dict[str, Any] = {"gated": more == "gated"}
        if more == "residual":
            around["residual"] = x.new_zeros(count, len(matrices[0][0]))
        else:
            around["norm"] = (torch.ones_like(x[0]), 1e-5)

        def layers(x: Any = x, matrices: Any = matrices, around: Any = around) -> None:
            for matrix in matrices:
                kernels.linear(x, *matrix, **around)

        whole = usual(count, t3.dtype.itemsize)["ROWS"]
        if count <= kernels.FEW:
            tile_of, tried = kernels.tile_of_few, product((1, 2, 4, 8), (512, 1024))
        else:
            tile_of, tried = kernels.tile_of_many, product((16, 32), (64, 128))
        for columns, depth in tried:
            tile = tile_of(whole, columns=columns, depth=depth)
            kernels.tiles = lambda *_, tile=tile, **__: tile
            try:
                each = microseconds(record, layers, device, 1) / len(matrices)
            except FAILURES:  # a tile that is too large for this card
                each = math.nan
            finally:
                kernels.tiles = usual
            size = matrices[0][0].nbytes
            row = {"matrix": name, "rows": count, "columns": columns, "depth": depth}
            found.append(row | {"us": each, "gb_per_second": size / each / 1e3})
    return found


def early_kernels(engine: Engine, t3: T3, count: int, tokens: int) -> dict[str, Any]:
    """Kernels that begin while the one before them works, against none that do: the same tokens,
    and how fast they come, one utterance at a time."""
    from chatterbox_opt import kernel_launch  # imports Triton, which is not everywhere

    device, usual = t3.like.device, kernel_launch.early
    if not usual(device):
        return {"here": False}
    found: dict[str, Any] = {"here": True}
    tokens_said = []
    try:
        for name, early in (("early", usual), ("in turn", lambda _: False)):
            kernel_launch.early = early
            way = Captured(CudaRecorder(device), fused=True)
            for _ in range(3):  # met, recorded, replayed; the last counts
                spoken, clock = utterances(engine, count, tokens), Clock(device)
                tokens_said.append(said(t3, way, spoken, 1))
                clock.lap("seconds")
            found[name] = sum(map(len, tokens_said[-1])) / clock.seconds["seconds"]
    finally:
        kernel_launch.early = usual
    return found | {"good": all(one == tokens_said[0] for one in tokens_said)}


def throughput(engine: Engine, lines: int) -> dict[str, Any]:
    """Lines of 5 to 12 s side by side, their sound made in turn with T3 and, if the plan says so,
    beside it; an eighth of them one by one, and some by plain Chatterbox."""
    batch.never_stop(engine)
    asked, many = batch.requests(lines), engine.plan.slots
    rows: dict[str, Any] = {"1 at once": batch.ours(engine, asked[: max(1, lines // 8)], 1)}
    for who, sound in sounds(engine).items():
        with made_by(engine, sound):
            rows[f"{many} at once, sound {who}"] = batch.ours(engine, asked, many)
    last = rows[f"{many} at once, sound {engine.plan.sound}"]
    if len(rows) > 2:
        rows["overlap_speedup"] = rows[f"{many} at once, sound {HERE}"]["seconds"] / last["seconds"]
    with suppress(InputError):  # a model whose shapes are not upstream's
        model, device = str(engine.checkpoint.directory), engine.plan.device
        rows["upstream"] = batch.upstream(model, asked[:UPSTREAM_LINES], device)
        rows["over_upstream"] = last["realtime_x"] / rows["upstream"]["realtime_x"]
    return rows


def sounds(engine: Engine) -> dict[str, Sound]:
    """Who can make the sound of a batch: always T3's own thread, and whom the plan has."""
    return {HERE: Here(), engine.plan.sound: pipeline_of(engine).sound}


@contextmanager
def made_by(engine: Engine, sound: Sound) -> Iterator[None]:
    """Have another make it."""
    pipeline = pipeline_of(engine)
    before, pipeline.sound = pipeline.sound, sound
    try:
        yield
    finally:
        pipeline.sound = before


def beside_parity(engine: Engine, lines: int) -> dict[str, Any]:
    """Waves made beside T3 against those made in turn, bit by bit; and whether what was recorded
    beside it went well."""
    batch.never_stop(engine)
    asked = [
        replace(one, sampling=replace(one.sampling, max_tokens=20 + i % 50, cfm_steps=4 + i % 2))
        for i, one in enumerate(batch.requests(lines))
    ]

    def waves(sound: Sound) -> dict[str, np.ndarray]:
        with made_by(engine, sound):
            return {result.id: result.audio().samples for result in engine.batch(asked)}

    pipeline = pipeline_of(engine)
    planned, way = pipeline.sound, pipeline.way
    for _ in range(2):  # met, recorded
        waves(planned)
    here, *others = waves(Here()), waves(planned), waves(Here()), waves(planned)
    equal = sum(all(np.array_equal(one[id], here[id]) for id in here) for one in others)
    kept = pipeline.way is way and not getattr(planned, "over", False)
    return {"equal": equal, "of": len(others), "kept": kept, "good": kept and equal == len(others)}


def recording(model: str, device: str, dtype: str) -> Engine:
    """An engine that records."""
    overrides = {"dtype": dtype, "compile": "cudagraphs"}
    return Engine.load(model, "dev", device=device, overrides=overrides)


def checks(
    model: str, device: str, say: Callable[[str], None], sizes: Sizes, found: dict[str, Any]
) -> None:
    """Whether it is right, one by one into ``found``: what comes later may end the process."""
    before = allocated()
    for dtype in ("float32", "int8", "float16"):
        say(f"parity in {dtype}")
        with recording(model, device, dtype) as engine:
            way = pipeline_of(engine).way
            found[f"captured_{dtype}"] = {"good": isinstance(way, Captured)}
            for slots in (1, 4):
                name, plain = f"tokens_{dtype}_{slots}_at_once", Eager(fused=way.fused)
                found[name] = token_parity(engine, way, plain, slots, sizes.said, sizes.tokens)
            # by kernels of our own against PyTorch's; narrower, they round elsewhere
            by = token_parity(engine, way, Eager(), 2, sizes.said, sizes.tokens)
            found[f"tokens_{dtype}_by_pytorch"] = by | {"good": by["good"] or dtype != "float32"}
            found[f"sound_{dtype}"] = sound_parity(engine)
    say("sound beside T3, drift")
    with recording(model, device, "float16") as engine:
        found["sound_beside"] = beside_parity(engine, sizes.beside)
        found["drift"] = drift(engine, sizes.drifting, sizes.drifted)
    del engine, way
    gc.collect()
    left = allocated() - before
    found["closed"] = {"left_mib": left / 2**20, "good": left <= LIBRARIES}


def timings(
    model: str, device: str, say: Callable[[str], None], sizes: Sizes, found: dict[str, Any]
) -> None:
    """What the table does not tell, into ``found``: batches, lengths, and kernel by kernel."""
    say("warm-up, lengths, a batch")
    with recording(model, device, "float16") as engine:
        found["warm_up_seconds"] = warm_up_seconds(engine)
        found["s3gen_by_length"] = s3gen_by_length(engine, sizes.lengths)
        found["batch"] = throughput(engine, sizes.lines)
    say("kernels")
    with recording(model, device, "float16") as engine, on_device(engine, "t3") as t3:
        way, record = pipeline_of(engine).way, CudaRecorder(t3.like.device)
        if way.fused:
            found["early_kernels"] = early_kernels(engine, t3, sizes.said, sizes.tokens)
        ways = {"launched": Eager(fused=way.fused), "replayed": way}
        found["prefill_by_length"] = prefill_by_length(engine, t3, ways, sizes.texts)
        found["decode_attention_us"] = decode_kernels(t3, record, sizes.spans, fused=way.fused)
        shape, fused = engine.checkpoint.shapes.flow, "flow" in engine.plan.fused
        found["flow_attention_us"] = frame_kernels(
            shape, record, t3.like.device, sizes.frames, fused=fused
        )
        with launched(engine):
            found["s3gen_launched_by_length"] = s3gen_by_length(engine, sizes.lengths)
        if way.fused:
            found["step_products"] = step_products(t3, record, sizes.rows)


def failed(found: dict[str, Any]) -> list[str]:
    """Names of the checks that are not good."""
    return [
        name for name, one in found.items() if isinstance(one, dict) and not one.get("good", True)
    ]


def main(
    output: Annotated[
        Path | None, typer.Option("--json", help="benchmarks/results/NAME.json")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of sound, for the table.")] = 10.0,
    runs: Annotated[int, typer.Option(help="Of every row of the table.")] = 3,
    model: Annotated[str | None, typer.Option(help="None makes random weights.")] = None,
) -> None:
    """Check and measure."""
    if hardware.probe(hardware.AUTO).device != "cuda":
        typer.echo(
            "error: there is no CUDA card here; make test proves what can be without", err=True
        )
        raise typer.Exit(1)

    def say(line: str) -> None:
        typer.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)

    found: dict[str, Any] = {}
    report: dict[str, Any] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # out of time
    try:
        with bench.weights(model, tiny=False, say=say) as path:
            checks(path, "cuda", say, Sizes(), found)
            job = Job(path, "cuda", tokens=forced_tokens(seconds), runs=runs)
            report = bench.measure(job, bench.choose_rows(None, [], "cuda", tiny=False), say)
            timings(path, "cuda", say, Sizes(), found)
    finally:  # whatever was found until then
        text = json.dumps(report | {"checks": found}, indent=1)
        typer.echo(text) if output is None else output.write_text(text + "\n", encoding="utf-8")
    for name in failed(found):
        typer.echo(f"failed: {name}: {found[name]}", err=True)
    sys.exit(1 if failed(found) else 0)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    typer.run(main)
