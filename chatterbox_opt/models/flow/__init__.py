"""Flow matching from speech tokens to mel: conformer encoder, velocity field estimator, ODE solver.
May import layers, kernels, runtime and below; not t3, vocoder, checkpoints or the engine."""
