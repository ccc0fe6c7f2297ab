"""Device services that know no model: CUDA graphs, streams, offload, recovery, padding, malloc.

May import ``config`` and ``errors``; the model, layer and kernel packages build on it.
"""
