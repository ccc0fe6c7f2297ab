"""The networks: T3 (text to speech tokens), flow (tokens to mel), vocoder (mel to wave), encoders.
May import layers, kernels, runtime and below; not checkpoints, voices or the engine."""
