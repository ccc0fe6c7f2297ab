"""Which values a ``config.json`` may have: types and ranges.

Responsible for refusing a value before anything of its size is allocated. Not responsible for
reading it or for what must fit together (model_config.py).
"""

from __future__ import annotations

CHOICES = {"backbone": ("llama", "gpt2"), "text": ("english", "turbo", "multilingual")}
COUNT, WIDTH, ROWS = 256, 16_384, 1 << 20  # largest number of layers, of columns, of vectors
_COUNTS = (
    *("layers", "heads", "resampler_heads", "encoder_heads", "encoder_blocks", "up_blocks"),
    *("estimator_heads", "estimator_blocks", "estimator_mid"),
    *("tokenizer_heads", "tokenizer_layers"),
)
_ROWS = (
    "positions",
    *("text_vocab", "speech_vocab", "text_positions", "speech_positions", "prompt_tokens"),
    *("rope_context", "start_text", "stop_text", "start_speech", "stop_speech"),
)
_FROM_ZERO = ("positions", "start_text", "stop_text", "up_blocks", "estimator_mid")
_LARGEST_FLOAT = 1e9


def problem(name: str, value: object, default: float | str) -> str:
    """What is wrong with one value, as the end of "t3.layers is 0; ", or "".

    Args:
        default: of the same field; a float's may be a float.
    """
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "it must be true or false"
    if isinstance(default, str):
        known = CHOICES[name]
        return "" if value in known else f"it must be {' or '.join(known)}"
    if isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        good = fits and 0 < value <= _LARGEST_FLOAT  # type: ignore[operator]
        return "" if good else f"it must be a number above 0, at most {_LARGEST_FLOAT:.0e}"
    low = int(name not in _FROM_ZERO)
    high = COUNT if name in _COUNTS else ROWS if name in _ROWS else WIDTH
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    return "" if good else f"it must be a whole number from {low} to {high}"
