"""The requests that prepare an engine: after them, nothing is compiled or captured for most texts.

Responsible for texts and their limits. Not responsible for running them (engine.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chatterbox_opt.config.model_config import TOKEN_RATE
from chatterbox_opt.request import Request, VoiceSource
from chatterbox_opt.sampling import MAX_TOKENS, Sampling

TEXTS = (  # about 1, 5 and 12 seconds of audio
    "Hello, hello.",
    "This sentence is synthesized once at the start, and its audio is dropped.",
    "The first call of everything takes longer: kernels are compiled, libraries set themselves up, "
    "and CUDA graphs are captured. So these three texts are synthesized before the first request.",
)
TOKENS_PER_LETTER = 4  # speech tokens, in slow speech


def requests(texts: Sequence[str], voice: VoiceSource) -> Iterator[Request]:
    """A request for each text, or for ``TEXTS``; no longer than slow speech takes.

    Raises:
        TextError, VoiceError: a text or the voice is of another type.
    """
    for text in texts or TEXTS:
        request = Request("", text, voice)
        tokens = TOKEN_RATE + TOKENS_PER_LETTER * len(request.text)
        yield Request("", text, voice, Sampling(seed=0, max_tokens=min(MAX_TOKENS, tokens)))
