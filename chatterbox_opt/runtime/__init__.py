"""Model-independent device services: CUDA graphs, streams, offload, recovery, padding, malloc.

May import ``config`` and ``errors``; the model, layer and kernel packages build on it.
"""
