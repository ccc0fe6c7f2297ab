"""Convolutions over time by our own CPU kernel; ops.py is what others call."""
