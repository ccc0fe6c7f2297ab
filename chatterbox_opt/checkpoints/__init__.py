"""Model files on disk: find, download, read, convert and cache weights.

May import ``models`` and the folders below it; not ``voices``, ``engine`` or ``cli``.
"""
