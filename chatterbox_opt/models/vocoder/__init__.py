"""HiFT vocoder, mel to waveform: F0 predictor, harmonic source, generator, inverse STFT.
May import runtime, config, utils and below; not t3, flow, checkpoints or the engine."""
