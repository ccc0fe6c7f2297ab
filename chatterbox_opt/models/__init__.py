"""The networks: T3 (text to speech tokens), flow (tokens to mel), vocoder (mel to wave), encoders.
May import layers, kernels, runtime and below; knows no files, requests or devices' plans."""
