"""Readers of job files, one module for each kind of file.

Every reader takes a file's name (for messages) and its text, and returns ``rows.Parsed``.
"""
