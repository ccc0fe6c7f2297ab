"""Text processing: cleaning, normalization, splitting into chunks, numbers to words.

May import ``config``, ``utils``, ``sampling`` and ``errors``; never torch.
"""
