"""Single layers: linear layers with weight formats that ``nn.Linear`` does not have, and attention.
May import kernels, runtime, utils and errors; independent of models, plans and files."""
