"""Compute kernels for CPU (numba, LLVM IR) and GPU (Triton): tensors in, tensors out.
May import errors, utils and runtime; independent of models, plans and files."""
