"""What a benchmark measures: our engine under a plan, and plain Chatterbox, saying the same tokens.

Knows how to run one configuration stage by stage with a clock. Knows nothing of rows, processes or
reports (see bench/runner.py).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from chatterbox_opt.checkpoints.registry import CONDITIONALS, locate
from chatterbox_opt.config import hardware
from chatterbox_opt.config.model_config import SAMPLE_RATE, SPEECH_TOKENS, TOKEN_RATE, T3Config
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.decode import DecodeBackend, DecodeStep, EagerBackend, decode
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.t3_runner import text_tokens
from chatterbox_opt.engine.upstream_backend import UpstreamBackend, upstream_conditionals
from chatterbox_opt.errors import InputError
from chatterbox_opt.eval.wer import word_errors
from chatterbox_opt.eval.whisper import Recognizer
from chatterbox_opt.models.t3.decode_state import DecodeRequest
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.models.t3.sampler import apply_cfg
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text import chunking
from chatterbox_opt.voice import from_conditionals

SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
HEARD = (  # what the recognizer listens to; everyday words, no two sentences alike
    "The boat left the harbour early, long before the fog had lifted.",
    "Could somebody help me carry these heavy boxes upstairs?",
    "My grandmother always kept a jar of honey next to the teapot.",
    "If the shop is closed, we will try again on Thursday morning.",
    "He whistled quietly while he painted the garden gate green.",
    "Nobody expected so much snow at the end of April!",
)
PROFILED = 24  # tokens of which the kernels are listed: a recorded step is replayed by then
ATTENTION = ("scaled_dot_product", "flash", "fmha", "cudnn", "efficient", "one_query")  # and ours
STANDARD = "float32"
UPSTREAM = "upstream"
ROWS: dict[str, dict[str, str]] = {  # name -> overrides of the plain profile "dev"
    STANDARD: {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "int4": {"dtype": "int4"},
    "float16": {"dtype": "float16"},
    "+compile": {"dtype": "float16", "compile": "cudagraphs"},
    "+offload": {"dtype": "float16", "compile": "cudagraphs", "offload": "stages"},
    "+int8": {"dtype": "int8", "compile": "cudagraphs", "offload": "stages"},
}


@dataclass(frozen=True, slots=True)
class BenchJob:
    """What every row does.

    Attributes:
        model: name or directory, as for synth.
        device: "auto", "cuda", "mps" or "cpu".
        sentence: the text of the prefill.
        tokens: the forced speech tokens.
        runs: measured runs of each row, after those that warm up.
        cold: whether whole processes are measured too, see cold_start.py.
        patience: seconds that a row may take to load, or to answer once.
    """

    model: str
    device: str = hardware.AUTO
    sentence: str = SENTENCE
    tokens: tuple[int, ...] = ()
    runs: int = 3
    cold: bool = False
    patience: float = 1800.0


class BenchTarget(Protocol):
    """A loaded configuration.

    Attributes:
        dtype: of the T3 weights that every step reads.
        plan: one line, what is in force.
        warm_ups: runs before those that count.
    """

    dtype: str
    plan: str
    warm_ups: int

    def run(self) -> dict[str, float]:
        """Say the tokens once; seconds by stage."""
        ...

    def attention(self) -> list[str]:
        """Names of the attention kernels that ran, as PyTorch's profiler has them: a card's; on a
        processor PyTorch's operations, without code of ours. Upstream's are not listed."""
        ...

    def quality(self) -> dict[str, Tensor]:
        """Logits [tokens, V] and mel [80, F] for comparison, and [errors, words] of what a
        recognizer heard; without what is not to be had."""
        ...


def forced_tokens(seconds: float) -> tuple[int, ...]:
    """Speech tokens for so many seconds of sound; always the same ones."""
    count = max(2, round(seconds * TOKEN_RATE))
    drawn = torch.randint(0, SPEECH_TOKENS, (count,), generator=torch.Generator().manual_seed(0))
    return tuple(drawn.tolist())


def attention_among(names: Sequence[str]) -> list[str]:
    """Those of the profiler's names that are attention, without their types and arguments."""
    short = {re.split(r"[<(]", name.removeprefix("void "))[0].strip() for name in names}
    return sorted(name for name in short if any(part in name for part in ATTENTION))


class OptimizedTarget:
    """Our engine under a plan."""

    def __init__(self, job: BenchJob, name: str, engine: Engine | None = None) -> None:
        """Load a row's engine.

        Args:
            engine: one that is loaded already, whatever the row.

        Raises:
            ChatterboxOptError: as ``Engine.load``.
        """
        known = name in ROWS
        self._engine = engine or Engine.load(
            job.model,
            "dev" if known else name,
            device=job.device,
            overrides=ROWS[name] if known else {},
        )
        speaker = self._engine.pipeline
        if not isinstance(speaker, Pipeline):
            raise InputError("bench measures both: unset DISABLE_OPTIMIZATION")
        self._pipeline, self._job = speaker, job
        self.dtype, self.plan = self._engine.plan.t3, self._engine.plan.summary()
        # what is recorded is met in the first run and recorded in the second
        self.warm_ups = 2 if self._engine.plan.compile == "cudagraphs" else 1
        self._sampling = Sampling(seed=0, max_tokens=len(job.tokens))
        self._voice = self._engine.voice().to(speaker.device)

    def _say(
        self,
        record: list[Tensor] | None = None,
        most: int | None = None,
        steps: DecodeBackend | None = None,
    ) -> tuple[dict[str, float], Tensor]:
        """The pipeline's work, stage by stage, with forced tokens, or the first few of them.

        Args:
            steps: how T3's are run; None is the plan's.
        """
        forced_tokens = self._job.tokens[:most]
        pipeline, job, clock = self._pipeline, self._job, StageTimer(self._pipeline.device)
        generator = torch.Generator(pipeline.device).manual_seed(0)
        ids = text_tokens(pipeline.tokenizer, chunking.normalize(job.sentence))
        prompt = Prompt(ids, self._voice.speaker, self._voice.prompt)
        with pipeline.placement("t3") as stage:
            t3 = cast(T3, stage)
            planned = steps or pipeline.backend
            if record is not None:  # after every step, which a way that looks rarely cannot offer
                planned = EagerBackend(
                    planned.forward, fused=planned.fused, kv_cache=planned.kv_cache
                )
            backend = _TimedBackend(planned, clock)
            slots = backend.slots(t3, 1, 2)

            def on_token(_: int) -> None:
                if record is not None:
                    record.append(
                        apply_cfg(slots.logits.float(), slots.sampling_tensors.cfg_weight).cpu()
                    )

            sampling = replace(self._sampling, max_tokens=len(forced_tokens))
            said = DecodeRequest(prompt, sampling, generator, on_token, forced_tokens)
            waiting = iter([said])
            list(decode(t3, slots, lambda: next(waiting, None), backend))
        clock.lap("decode")
        tokens = torch.tensor(forced_tokens, device=pipeline.device)
        with pipeline.placement("flow") as flow:
            (mel,) = flow([tokens], [self._voice], [generator])
        clock.lap("flow")
        with pipeline.placement("vocoder") as vocoder:
            (wave,) = vocoder([mel], [generator])
            wave = wave.cpu().numpy()
        clock.lap("vocoder")
        if self._engine._watermark:
            self._engine._watermark.apply(wave)
        clock.lap("watermark")
        return clock.seconds, mel.cpu()

    def run(self, steps: DecodeBackend | None = None) -> dict[str, float]:
        """See ``BenchTarget``.

        Args:
            steps: how T3's are run; None is the plan's.
        """
        return self._say(steps=steps)[0]

    def quality(self) -> dict[str, Tensor]:
        """See ``BenchTarget``."""
        logits: list[Tensor] = []
        _, mel = self._say(logits)
        return {"logits": torch.cat(logits), "mel": mel} | self._understood()

    def attention(self) -> list[str]:
        """See ``BenchTarget``."""
        with torch.profiler.profile() as seen:
            self._say(most=PROFILED)
        return attention_among([event.key for event in seen.key_averages()])

    def _understood(self) -> dict[str, Tensor]:
        """Word errors of some sentences spoken freely, where an ASR is installed and the
        checkpoint speaks."""
        if self._engine.checkpoint.config.random_weights:
            return {}
        try:
            listener = Recognizer.load(threads=torch.get_num_threads())
        except InputError:
            return {}  # the extra is not installed: the column stays empty
        counts = []
        for i, sentence in enumerate(HEARD):
            audio = self._engine.synthesize(sentence, self._voice, Sampling(seed=i))
            heard = listener.transcribe(audio.samples, audio.sample_rate)
            counts.append(word_errors(sentence, heard))
        return {"words": torch.tensor(counts).sum(0)}


class UpstreamTarget:
    """The installed chatterbox-tts, driven through its own functions."""

    dtype = STANDARD
    plan = "plain chatterbox-tts"
    warm_ups = 1

    def __init__(self, job: BenchJob, _: str) -> None:
        checkpoint = locate(job.model)
        device = torch.device(probe.probe(job.device).device)
        self._tts: Any = UpstreamBackend.load(checkpoint, device).model
        self._tts.t3.hp.stop_speech_token = -1  # never drawn: as many tokens as asked for
        self._voice = from_conditionals(checkpoint.path(CONDITIONALS)).to(device)
        self._job, self._device = job, device

    def _t3(self, count: int) -> None:
        tts = self._tts
        ids = tts.tokenizer.text_to_tokens(chunking.normalize(self._job.sentence))
        shape = T3Config()
        edges = ids.new_tensor([[shape.start_text], [shape.stop_text]])
        ids = torch.cat((edges[:1], ids, edges[1:]), dim=1).repeat(2, 1).to(self._device)
        condition = upstream_conditionals(self._voice, 0.5).t3
        tts.t3.inference(t3_cond=condition, text_tokens=ids, max_new_tokens=count, top_p=1.0)

    def run(self, tokens: tuple[int, ...] = ()) -> dict[str, float]:
        """See ``BenchTarget``; decode is the time of all tokens less that of one.

        Args:
            tokens: others than the job's.
        """
        clock, gen = StageTimer(self._device), upstream_conditionals(self._voice, 0.5).gen
        said = tokens or self._job.tokens
        self._t3(1)
        clock.lap("prefill")
        self._t3(len(said))
        clock.lap("decode")
        clock.seconds["decode"] -= clock.seconds["prefill"]
        codes = torch.tensor(said, device=self._device)[None]
        mel = self._tts.s3gen.flow_inference(codes, ref_dict=gen, finalize=True)
        clock.lap("flow")
        wave, _ = self._tts.s3gen.hift_inference(mel)
        samples = wave[0].cpu().numpy()
        clock.lap("vocoder")
        self._tts.watermarker.apply_watermark(samples, sample_rate=SAMPLE_RATE)
        clock.lap("watermark")
        return clock.seconds

    def attention(self) -> list[str]:
        """Nothing: see ``BenchTarget``."""
        return []

    def quality(self) -> dict[str, Tensor]:
        """Nothing: that upstream's numbers are ours in float32 is what the tests show."""
        return {}


class _TimedBackend:
    """A way to decode that notes the end of the prefill, which is where the first step begins."""

    def __init__(self, backend: DecodeBackend, clock: StageTimer) -> None:
        self._backend, self._clock = backend, clock
        self.steps_per_sync, self.forward, self.fused = (
            backend.steps_per_sync,
            backend.forward,
            backend.fused,
        )
        self.kv_cache = backend.kv_cache
        self.slots, self.prefill, self.readback = backend.slots, backend.prefill, backend.readback

    def step(self, t3: T3) -> DecodeStep:
        """See ``decoding.Way``."""
        if "prefill" not in self._clock.seconds:
            self._clock.lap("prefill")
        return self._backend.step(t3)


class StageTimer:
    """Seconds between laps, with the device's work done."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, {}  # type: tuple[torch.device, dict[str, float]]
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the time since the last lap under ``name``."""
        now = self._now()
        self.seconds[name], self._last = now - self._last, now
