"""The command ``batch``: its options, progress display and dry run."""
