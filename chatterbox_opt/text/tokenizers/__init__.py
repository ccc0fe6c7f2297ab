"""Text to token ids, as the tokenizer of each kind of model does.

May import ``config``, ``utils`` and ``errors``; the tokenizers library inside functions only.
"""
