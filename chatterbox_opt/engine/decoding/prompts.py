"""What T3 gets of a sequence: its text as tokens, and its voice.

Responsible for these values on the device. Not responsible for the tokenizers (text/tokenizers/).
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_opt.engine.sequence import Sequence
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.runtime.cuda import to_device
from chatterbox_opt.text.tokenizers.loading import TextTokenizer


def prompt_of(sequence: Sequence, tokenizer: TextTokenizer, device: torch.device) -> Prompt:
    """The inputs of T3; notes the number of text tokens. Raises as ``TextTokenizer.encode``."""
    voice, chunk = sequence.voice, sequence.chunk
    ids = text_tokens(tokenizer, chunk.text, chunk.language)
    sequence.text_tokens = len(ids)
    # what is kept of a voice is looked up by its values: it stays where they can be read
    return Prompt(to_device(ids, device), voice.speaker, voice.prompt)


def text_tokens(tokenizer: TextTokenizer, text: str, language: str | None = None) -> Tensor:
    """Normalized text to int64 [T], without start and stop."""
    return torch.tensor(tokenizer.encode(text, language), dtype=torch.long)
