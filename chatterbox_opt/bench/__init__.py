"""Benchmarks: speed, memory and quality of each configuration against plain chatterbox-tts.

May import ``engine`` and the folders below it; never ``batch`` or ``cli``.
"""
