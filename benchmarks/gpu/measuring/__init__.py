"""What stages measure with: clocks, the engine taken apart, checks, single kernels, traces. Imports
the files above it, never stages/."""
