"""The command ``serve``: command.py has its options, workers.py several processes."""
