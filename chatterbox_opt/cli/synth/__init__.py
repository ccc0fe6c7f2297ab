"""The command ``synth``: command.py has its options, streaming.py those of ``--stream``."""
