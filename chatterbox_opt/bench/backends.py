"""What a benchmark measures: this engine under a plan, on forced tokens.

Responsible for running one configuration stage by stage with a timer. Not responsible for the
reference (bench/upstream.py), for rows, processes or reports (bench/runner.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

from chatterbox_opt.bench.timing import BenchJob, StageTimer
from chatterbox_opt.config.profile import TURBO_FLOW
from chatterbox_opt.engine import texts
from chatterbox_opt.engine.decoding.decode import DecodeBackend, DecodeStep, EagerBackend, decode
from chatterbox_opt.engine.decoding.prompts import text_tokens
from chatterbox_opt.engine.engine import Engine
from chatterbox_opt.engine.pipeline import Pipeline
from chatterbox_opt.engine.sequence import RequestState
from chatterbox_opt.errors import InputError
from chatterbox_opt.eval.wer import word_errors
from chatterbox_opt.eval.whisper import Recognizer
from chatterbox_opt.models.t3.model import T3, Prompt
from chatterbox_opt.models.t3.sampler import apply_cfg
from chatterbox_opt.request import Progress
from chatterbox_opt.sampling import Sampling, for_model
from chatterbox_opt.text import chunking
from chatterbox_opt.text.languages import DEFAULT, languages_of

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
FLOW = "+flow"  # how the names of rows with Turbo's flow end
ROWS: dict[str, dict[str, str]] = {  # name -> overrides of the plain profile "dev"
    STANDARD: {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
    "int4": {"dtype": "int4"},
    "float16": {"dtype": "float16"},
    "+compile": {"dtype": "float16", "compile": "cudagraphs"},
    "+offload": {"dtype": "float16", "compile": "cudagraphs", "offload": "stages"},
    "+int8": {"dtype": "int8", "compile": "cudagraphs", "offload": "stages"},
    "float32+flow": {"flow_model": TURBO_FLOW},  # in place of Turbo's, ``BenchJob.flow``
    "bfloat16+flow": {"dtype": "bfloat16", "flow_model": TURBO_FLOW},
    "int8+flow": {"dtype": "int8", "flow_model": TURBO_FLOW},
    "+compile+flow": {"dtype": "float16", "compile": "cudagraphs", "flow_model": TURBO_FLOW},
}


def overrides(job: BenchJob, row: str) -> dict[str, str]:
    """A row's overrides of the profile, with the job's flow where it has another one."""
    given = ROWS[row]
    return given | {"flow_model": job.flow} if "flow_model" in given else given


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
            overrides=overrides(job, name) if known else {},
        )
        pipeline = self.engine.pipeline
        if not isinstance(pipeline, Pipeline):
            raise InputError("bench measures both: unset DISABLE_OPTIMIZATION")
        self._pipeline, self._job = pipeline, job
        self.dtype, self.plan = self.engine.plan.t3.storage, self.engine.plan.summary()
        # CUDA graphs are captured when a shape is seen for the second time
        self.warm_ups = 2 if self.engine.plan.compile == "cudagraphs" else 1
        config = self._config = self.engine.checkpoint.config
        self._rules = texts.rules(config, self._language())
        self._sampling = for_model(
            Sampling(seed=0, max_tokens=len(job.tokens)),
            config.sampling_defaults,
            config.missing_knobs,
        )
        self._voice = self.engine.voice().to(pipeline.device)

    def _language(self) -> str | None:
        """Of the sentence; None for a model that knows one only."""
        if len(languages_of(self._config)) == 1:
            return None
        return self._job.language or DEFAULT

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
        text = self._rules.normalize(job.sentence)
        ids = text_tokens(pipeline.decoder.tokenizer, text, self._language())
        prompt = Prompt(ids, self._voice.speaker, self._voice.prompt)
        with pipeline.placement("t3") as stage:
            t3 = cast(T3, stage)
            backend = backend or pipeline.decoder.backend
            if step_logits is not None:  # after every step, so no backend that syncs rarely
                backend = EagerBackend(
                    backend.forward, fused=backend.fused, kv_cache=backend.kv_cache
                )
            timed = _TimedBackend(backend, clock)
            state = timed.slots(t3, 1, t3.config.rows_per_seq)

            def on_token(_: RequestState, __: Progress) -> None:
                if step_logits is not None:
                    logits = apply_cfg(state.logits.float(), state.sampling_tensors.cfg_weight)
                    step_logits.append(logits.cpu().clone())  # the buffer is used again

            sampling = replace(self._sampling, max_tokens=len(tokens))
            request = RequestState("bench", 0, on_progress=on_token)
            request.add_chunks([chunking.Chunk(job.sentence)], self._voice, sampling)
            [sequence] = request.sequences
            sequence.prompt, sequence.generator = prompt, generator
            sequence.forced_tokens = tokens
            t3.kept.clear()  # the first text in a voice takes this long in addition
            t3.conditioning(prompt, sampling.exaggeration)
            clock.lap("voice")
            list(decode(t3, state, [sequence], timed))
        clock.lap("decode")
        codes = torch.tensor([*tokens, *self._config.silence], device=pipeline.device)
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
            language = None if self._language() is None else DEFAULT
            audio = self.engine.synthesize(
                sentence, self._voice, Sampling(seed=i), language=language
            )
            transcript = recognizer.transcribe(audio.samples, audio.sample_rate)
            counts.append(word_errors(sentence, transcript))
        return {"words": torch.tensor(counts).sum(0)}


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
