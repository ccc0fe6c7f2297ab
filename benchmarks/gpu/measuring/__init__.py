"""Tools of the stages: clocks, the engine's parts, checks, single kernels, traces. Imports
benchmarks.gpu, never its stages."""
