"""The recipe of pico, the built-in model: data, training, evaluation, packing (README.md)."""
