"""Speech recognition and word error rates, for tests, benchmarks and ``--verify``.

May import ``utils`` and ``errors``; not ``models`` or ``engine``.
"""
