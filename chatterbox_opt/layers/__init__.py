"""Layers with other weight formats than ``nn.Linear``, and attention; one layer at a time.
They may import kernels, runtime, utils and errors; they know no model, no plan and no file."""
