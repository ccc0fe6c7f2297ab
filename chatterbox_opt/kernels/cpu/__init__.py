"""CPU kernels, compiled by numba and LLVM: int8/int4/bf16 GEMM, attention, norms, T3's decode step.
May import errors, utils and runtime; independent of models, plans and files."""
