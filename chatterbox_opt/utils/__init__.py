"""General helpers: atomic files, lazy imports, module construction.

May import ``errors`` only.
"""
