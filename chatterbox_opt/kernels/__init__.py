"""Compute kernels for CPU (numba, LLVM IR) and GPU (Triton): tensors in, tensors out.
They may import errors, utils and runtime; they know no model, no plan and no file."""
