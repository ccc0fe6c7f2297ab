"""Helpers that know nothing of speech: atomic files, lazy imports, module construction.

May import ``errors`` only.
"""
