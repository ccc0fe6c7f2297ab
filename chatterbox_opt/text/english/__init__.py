"""English text to the words that the built-in model reads: numbers, signs, markup, other scripts.

May import ``text``, ``utils`` and ``errors``; never torch.
"""
