"""T3, the token decoder: model, KV caches, sampler, decode state, and fused decode steps.
May import layers, kernels, runtime and below; not flow, vocoder, checkpoints or the engine."""
