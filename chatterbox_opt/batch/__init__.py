"""Batch jobs: job files, manifest and resuming, worker processes, Ray actors.

May import ``engine`` and the folders below it; never ``bench`` or ``cli``.
"""
