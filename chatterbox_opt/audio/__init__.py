"""Audio files in and out, and the PerTh watermark.

May import ``runtime`` and the modules below it; not ``kernels``, ``models`` or ``engine``.
"""
