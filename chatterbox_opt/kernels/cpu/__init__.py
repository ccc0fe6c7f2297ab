"""CPU kernels, compiled by numba and LLVM: int8/int4/bf16 GEMM, attention, norms, T3's decode step.
They may import errors, utils and runtime; they know no model, no plan and no file."""
