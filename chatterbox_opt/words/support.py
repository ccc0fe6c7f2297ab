"""Whether a model can say when its words are heard.

Responsible for the error that says why not, before anything is loaded. Imports no torch.
"""

from __future__ import annotations

from chatterbox_opt.config.model_config import ModelConfig
from chatterbox_opt.errors import InputError
from chatterbox_opt.text.languages import LANGUAGES

UNSPACED = ("ja", "zh")  # languages without blanks between words


def check_timestamps(config: ModelConfig, language: str | None = None) -> None:
    """Check that there are word times for a model and a language.

    Args:
        language: a code of text/languages.py; ``AUTO`` and None pass.

    Raises:
        InputError: nobody knows which of its T3's heads follow the text, or the language does not
            tell words apart.
    """
    if not config.alignment_heads:
        raise InputError(
            "this model has no word times, because it is not known which attention heads of its T3 "
            "follow the text: leave out the timestamps, or use chatterbox, multilingual or pico"
        )
    if language in UNSPACED:
        raise InputError(
            f"{LANGUAGES[language]} has no blanks between words, so there are no word times: leave "
            "out the timestamps"
        )
