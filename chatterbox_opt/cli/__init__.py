"""The command line: one module per command, shared options, terminal output, exit codes.

May import everything below it; the only package that prints and exits.
"""
