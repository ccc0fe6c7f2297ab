"""What a benchmark measures: this engine under a plan, and chatterbox-tts, on the same tokens.

Responsible for running one configuration stage by stage with a timer. Not responsible for rows,
processes or reports (bench/runner.py).
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from chatterbox_opt.checkpoints.registry import CONDITIONALS, locate
from chatterbox_opt.config import hardware
from chatterbox_opt.config.model_config import SAMPLE_RATE, SPEECH_TOKENS, TOKEN_RATE, T3Config
from chatterbox_opt.engine import probe
from chatterbox_opt.engine.decoding.decode import DecodeBackend, DecodeStep, EagerBackend, decode
from chatterbox_opt.engine.decoding.decoder import text_tokens
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.sequence import RequestState
from chatterbox_opt.engine.upstream_backend import UpstreamBackend, upstream_conditionals
from chatterbox_opt.errors import InputError
from chatterbox_opt.eval.wer import word_errors
from chatterbox_opt.eval.whisper import Recognizer
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.models.t3.sampler import apply_cfg
from chatterbox_opt.request import Progress
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text import chunking
from chatterbox_opt.text.normalizers import normalize
from chatterbox_opt.voice import from_conditionals

SENTENCE = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all."
WER_SENTENCES = (  # for the word error rate; everyday words, no two sentences alike
    "The boat left the harbour early, long before the fog had lifted.",
    "Could somebody help me carry these heavy boxes upstairs?",
    "My grandmother always kept a jar of honey next to the teapot.",
    "If the shop is closed, we will try again on Thursday morning.",
    "He whistled quietly while he painted the garden gate green.",
    "Nobody expected so much snow at the end of April!",
)
PROFILED_TOKENS = 24  # decoded under the profiler: a captured step is replayed by then
ATTENTION = (  # parts of the names of attention kernels; the last one of those in kernels/cuda/
    "scaled_dot_product",
    "flash",
    "fmha",
    "cudnn",
    "efficient",
    "attention_kernel",
)
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
    """The work that every row is measured on.

    Attributes:
        model: name or directory, as for synth.
        device: "auto", "cuda", "mps" or "cpu".
        sentence: the text of the prefill.
        tokens: the forced speech tokens.
        runs: measured runs of each row, after the warm-up.
        cold: whether whole processes are measured too, see cold_start.py.
        timeout: seconds that a row may take to load, or for one run.
    """

    model: str
    device: str = hardware.AUTO
    sentence: str = SENTENCE
    tokens: tuple[int, ...] = ()
    runs: int = 3
    cold: bool = False
    timeout: float = 1800.0


class BenchTarget(Protocol):
    """A loaded configuration.

    Attributes:
        dtype: of the T3 weights that every step reads.
        plan: the resolved settings in one line.
        warm_ups: runs before the measured ones.
    """

    dtype: str
    plan: str
    warm_ups: int

    def run(self) -> dict[str, float]:
        """Generate the tokens once; seconds by stage."""
        ...

    def attention(self) -> list[str]:
        """Names of the attention kernels that ran, from PyTorch's profiler: CUDA kernels on a GPU;
        on a CPU PyTorch's operations, without this package's kernels. Empty for chatterbox-tts."""
        ...

    def quality(self) -> dict[str, Tensor]:
        """ "logits" [tokens, V] and "mel" [80, F] for comparison, and "words": [errors, words] of a
        recognizer's transcripts. What is not available is missing."""
        ...


def forced_tokens(seconds: float) -> tuple[int, ...]:
    """Random speech tokens for this many seconds of audio; the same ones on every call."""
    count = max(2, round(seconds * TOKEN_RATE))
    tokens = torch.randint(0, SPEECH_TOKENS, (count,), generator=torch.Generator().manual_seed(0))
    return tuple(tokens.tolist())


def attention_among(names: Sequence[str]) -> list[str]:
    """The attention kernels among the profiler's names, without their types and arguments."""
    short = {re.split(r"[<(]", name.removeprefix("void "))[0].strip() for name in names}
    return sorted(name for name in short if any(part in name for part in ATTENTION))


class OptimizedTarget:
    """This engine under a plan."""

    def __init__(self, job: BenchJob, name: str, engine: Engine | None = None) -> None:
        """Load a row's engine.

        Args:
            engine: one that is loaded already; ``name`` is ignored then.

        Raises:
            ChatterboxOptError: as ``Engine.load``.
        """
        known = name in ROWS
        self.engine = engine or Engine.load(
            job.model,
            "dev" if known else name,
            device=job.device,
            overrides=ROWS[name] if known else {},
        )
        pipeline = self.engine.pipeline
        if not isinstance(pipeline, Pipeline):
            raise InputError("bench measures both: unset DISABLE_OPTIMIZATION")
        self._pipeline, self._job = pipeline, job
        self.dtype, self.plan = self.engine.plan.t3.storage, self.engine.plan.summary()
        # CUDA graphs are captured when a shape is seen for the second time
        self.warm_ups = 2 if self.engine.plan.compile == "cudagraphs" else 1
        self._sampling = Sampling(seed=0, max_tokens=len(job.tokens))
        self._voice = self.engine.voice().to(pipeline.device)

    def _run_stages(
        self,
        step_logits: list[Tensor] | None = None,
        max_tokens: int | None = None,
        backend: DecodeBackend | None = None,
    ) -> tuple[dict[str, float], Tensor]:
        """Run the stages one by one on the forced tokens; seconds by stage, and the mel.

        Args:
            step_logits: gets the logits of every step, after CFG.
            max_tokens: only the first ones.
            backend: runs T3's steps; None is the plan's.
        """
        tokens = self._job.tokens[:max_tokens]
        pipeline, job, clock = self._pipeline, self._job, StageTimer(self._pipeline.device)
        generator = torch.Generator(pipeline.device).manual_seed(0)
        ids = text_tokens(pipeline.decoder.tokenizer, normalize(job.sentence))
        prompt = Prompt(ids, self._voice.speaker, self._voice.prompt)
        with pipeline.placement("t3") as stage:
            t3 = cast(T3, stage)
            backend = backend or pipeline.decoder.backend
            if step_logits is not None:  # after every step, so no backend that syncs rarely
                backend = EagerBackend(
                    backend.forward, fused=backend.fused, kv_cache=backend.kv_cache
                )
            timed = _TimedBackend(backend, clock)
            state = timed.slots(t3, 1, 2 if t3.config.has_cfg else 1)

            def on_token(_: RequestState, __: Progress) -> None:
                if step_logits is not None:
                    logits = apply_cfg(state.logits.float(), state.sampling_tensors.cfg_weight)
                    step_logits.append(logits.cpu())

            sampling = replace(self._sampling, max_tokens=len(tokens))
            request = RequestState("bench", 0, on_progress=on_token)
            request.add_chunks([chunking.Chunk(job.sentence)], self._voice, sampling)
            [sequence] = request.sequences
            sequence.prompt, sequence.generator = prompt, generator
            sequence.forced_tokens = tokens
            list(decode(t3, state, [sequence], timed))
        clock.lap("decode")
        codes = torch.tensor(tokens, device=pipeline.device)
        with pipeline.placement("flow") as flow:
            (mel,) = flow([codes], [self._voice], [generator])
        clock.lap("flow")
        with pipeline.placement("vocoder") as vocoder:
            (wave,) = vocoder([mel], [generator])
            wave = wave.cpu().numpy()
        clock.lap("vocoder")
        if self.engine._watermark:
            self.engine._watermark.apply(wave)
        clock.lap("watermark")
        return clock.seconds, mel.cpu()

    def run(self, backend: DecodeBackend | None = None) -> dict[str, float]:
        """Generate the tokens once; seconds by stage.

        Args:
            backend: runs T3's steps; None is the plan's.
        """
        return self._run_stages(backend=backend)[0]

    def quality(self) -> dict[str, Tensor]:
        logits: list[Tensor] = []
        _, mel = self._run_stages(logits)
        return {"logits": torch.cat(logits), "mel": mel} | self._word_errors()

    def attention(self) -> list[str]:
        activities = [ProfilerActivity.CPU]
        if self._pipeline.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as profile:
            self._run_stages(max_tokens=PROFILED_TOKENS)
        return attention_among([event.key for event in profile.key_averages()])

    def _word_errors(self) -> dict[str, Tensor]:
        """Word errors of some sentences without forced tokens; empty without a recognizer or with
        random weights."""
        if self.engine.checkpoint.config.random_weights:
            return {}
        try:
            recognizer = Recognizer.load(threads=torch.get_num_threads())
        except InputError:
            return {}  # the extra is not installed: the column stays empty
        counts = []
        for i, sentence in enumerate(WER_SENTENCES):
            audio = self.engine.synthesize(sentence, self._voice, Sampling(seed=i))
            transcript = recognizer.transcribe(audio.samples, audio.sample_rate)
            counts.append(word_errors(sentence, transcript))
        return {"words": torch.tensor(counts).sum(0)}


class UpstreamTarget:
    """The installed chatterbox-tts, called through its own functions."""

    dtype = STANDARD
    plan = "plain chatterbox-tts"
    warm_ups = 1

    def __init__(self, job: BenchJob, _: str) -> None:
        checkpoint = locate(job.model)
        device = torch.device(probe.probe(job.device).device)
        self._tts: Any = UpstreamBackend.load(checkpoint, device).model
        self._tts.t3.hp.stop_speech_token = -1  # never sampled: always max_new_tokens
        self._voice = from_conditionals(checkpoint.path(CONDITIONALS)).to(device)
        self._job, self._device = job, device

    def _t3(self, count: int) -> None:
        tts = self._tts
        ids = tts.tokenizer.text_to_tokens(normalize(self._job.sentence))
        config = T3Config()
        edges = ids.new_tensor([[config.start_text], [config.stop_text]])
        ids = torch.cat((edges[:1], ids, edges[1:]), dim=1).repeat(2, 1).to(self._device)
        condition = upstream_conditionals(self._voice, 0.5).t3
        tts.t3.inference(t3_cond=condition, text_tokens=ids, max_new_tokens=count, top_p=1.0)

    def run(self, tokens: tuple[int, ...] = ()) -> dict[str, float]:
        """Generate the tokens once; seconds by stage. Decode is the time of all tokens minus that
        of one.

        Args:
            tokens: other than the job's.
        """
        clock, gen = StageTimer(self._device), upstream_conditionals(self._voice, 0.5).gen
        tokens = tokens or self._job.tokens
        self._t3(1)
        clock.lap("prefill")
        self._t3(len(tokens))
        clock.lap("decode")
        clock.seconds["decode"] -= clock.seconds["prefill"]
        codes = torch.tensor(tokens, device=self._device)[None]
        mel = self._tts.s3gen.flow_inference(codes, ref_dict=gen, finalize=True)
        clock.lap("flow")
        wave, _ = self._tts.s3gen.hift_inference(mel)
        samples = wave[0].cpu().numpy()
        clock.lap("vocoder")
        self._tts.watermarker.apply_watermark(samples, sample_rate=SAMPLE_RATE)
        clock.lap("watermark")
        return clock.seconds

    def attention(self) -> list[str]:
        """Empty: chatterbox-tts is not profiled."""
        return []

    def quality(self) -> dict[str, Tensor]:
        """Empty: the tests show that float32 equals chatterbox-tts."""
        return {}


class _TimedBackend:
    """A ``DecodeBackend`` that times the prefill, which ends where the first step begins."""

    def __init__(self, backend: DecodeBackend, clock: StageTimer) -> None:
        self._backend, self._clock = backend, clock
        self.steps_per_sync, self.forward, self.fused = (
            backend.steps_per_sync,
            backend.forward,
            backend.fused,
        )
        self.kv_cache = backend.kv_cache
        self.slots, self.release_slots = backend.slots, backend.release_slots
        self.prefill, self.readback = backend.prefill, backend.readback

    def step(self, t3: T3) -> DecodeStep:
        """The backend's step; the first call ends the prefill."""
        if "prefill" not in self._clock.seconds:
            self._clock.lap("prefill")
        return self._backend.step(t3)


class StageTimer:
    """Seconds between laps; synchronizes with a GPU at every lap."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.seconds = device, {}  # type: tuple[torch.device, dict[str, float]]
        self._last = self._now()

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, name: str) -> None:
        """Store the time since the last lap under ``name``."""
        now = self._now()
        self.seconds[name], self._last = now - self._last, now
