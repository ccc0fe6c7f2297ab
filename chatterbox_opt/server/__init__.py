"""The speech server: HTTP in OpenAI's shape and others', over engines that all clients share.

May import ``engine`` and the folders below it; not ``cli``, ``batch`` or ``bench``. FastAPI is an
extra; only this folder imports it.
"""
