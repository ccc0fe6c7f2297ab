"""The kinds of lines that stages write: the "what" of a ``results.Line``.

Names only, so that who reads lines needs nothing of what writes them.
"""

from __future__ import annotations

# every stage's
BEGUN, ENDED = "begun", "ended"  # the first and last line of a stage that came to its end
FAILED = "failed part"  # "part", "error", "where"
CHECK = "check"  # "name", "good" and what else was found
LOADED = "loaded"  # an engine, or upstream
RUN = "run"  # one run of a row of the table: "row", "dtype", "warm", "seconds" by stage
TRITON = "triton"  # kernels compiled, and found compiled

# the runner's
STAGE, SKIPPED, SETUP = "stage", "stage skipped", "setup"

# ceilings
GPU, READ, COPY, GEMM = "gpu", "read", "copy", "gemm"
GRAPH, LAUNCH, HOST_COPY = "graph of nothing", "launch", "copy to the GPU"

# core
WHOLE, FIRST_AUDIO = "synthesize", "first audio"
SOUND, PREFILL, VRAM, HOST = "sound by length", "prefill by length", "vram", "host"

# profile
STEP, TRAFFIC, FLOW, KERNELS = "decode step", "decode step by part", "flow", "kernels"

# lab
PRODUCT, ATTENTION = "product", "attention of one query"
FLOW_ATTENTION = "attention of the flow"

# batches, profiles, speak
BATCH_T3, BATCH = "batch, T3 alone", "batch, whole"
PROFILE = "profile"
SPEECH = "speech of the built-in model"
