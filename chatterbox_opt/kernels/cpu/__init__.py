"""kernels.cpu"""
