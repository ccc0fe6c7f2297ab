"""The kinds of lines that stages write: the "what" of a ``results.Line``.

Names only, so that readers of lines do not import their writers.
"""

from __future__ import annotations

# of every stage
BEGUN, ENDED = "begun", "ended"  # the first and last line of a stage that completed
FAILED = "failed part"  # "part", "error", "where"
CHECK = "check"  # "name", "good" and figures
LOADED = "loaded"  # an engine, or upstream
RUN = "run"  # one run of a row of the table: "row", "dtype", "warm", "seconds" by stage
TRITON = "triton"  # number of kernels compiled, and taken from the cache

# of the runner
STAGE, SKIPPED, SETUP = "stage", "stage skipped", "setup"

# ceilings
GPU, READ, COPY, GEMM = "gpu", "read", "copy", "gemm"
GRAPH, LAUNCH, HOST_COPY = "graph of small kernels", "launch", "copy to the GPU"

# core
LATENCY, FIRST_AUDIO = "synthesize", "first audio"
STREAM = "first audio, low latency"
RENDERING, PREFILL, VRAM, HOST = "rendering by length", "prefill by length", "vram", "host"

# profile
STEP, TRAFFIC, FLOW, KERNELS = "decode step", "decode step by part", "flow", "kernels"

# lab
LINEAR, ATTENTION, FLOW_ATTENTION = "linear", "decode attention", "flow attention"

# batches, profiles, samples
BATCH_T3, BATCH = "batch, T3 alone", "batch, all stages"
PROFILE = "profile"
SPEECH = "samples of the built-in model"
