"""Triton kernels of the GPU: tensors in, tensors out. May import errors, runtime and each other,
never layers or models."""
