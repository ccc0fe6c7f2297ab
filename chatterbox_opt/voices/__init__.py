"""Reference recordings and voice names to ``Voice`` values, with a cache on disk.

May import ``checkpoints`` and the folders below it; not ``engine``, ``batch`` or ``cli``.
"""
