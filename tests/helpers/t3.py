"""T3 alone: its requests, its prefill, and the decode loop over a list of sequences."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from chatterbox_opt.engine.decoding.decode import EagerBackend, decode
from chatterbox_opt.engine.decoding.prompts import text_tokens
from chatterbox_opt.engine.sequence import RequestState, Sequence
from chatterbox_opt.layers import linear_onednn
from chatterbox_opt.models.t3 import fused_step
from chatterbox_opt.models.t3.decode_state import DecodeState
from chatterbox_opt.models.t3.kv_cache import StaticKVCache
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.text.chunking import Chunk

TEXTS = ["hello.", "a much longer sentence, with a comma in it.", "one two three four.", "no!"] * 3


def varied_sampling(i: int) -> Sampling:
    """Knobs of every kind, no two alike, some greedy, some without guidance."""
    return Sampling(
        seed=i,
        temperature=[0.0, 0.8, 1.7][i % 3],
        cfg_weight=[0.5, 0.0, 1.0, 0.3][i % 4],
        exaggeration=0.25 * (i % 5),
        min_p=[0.05, 0.0, 0.3][i % 3],
        top_p=[1.0, 0.7, 1.0, 1.0, 0.9][i % 5],
        top_k=[0, 0, 0, 12][i % 4],
        repetition_penalty=[1.2, 1.0, 2.0][i % 3],
        max_tokens=[20, 3, 41, 2, 33][i % 5],
    )


def prompt_for(engine, text: str):
    """A normalised text in the model's own voice."""
    voice = engine.voice()
    return Prompt(text_tokens(engine.pipeline.decoder.tokenizer, text), voice.speaker, voice.prompt)


def sequence_of(prompt, sampling, *, on_progress=None, **more) -> Sequence:
    """A prompt to be decoded once under the sampling's seed."""
    request = RequestState("a test", sampling.seed or 0, on_progress=on_progress)
    request.add_chunks([Chunk("a test")], None, sampling)
    [sequence] = request.sequences
    sequence.prompt = prompt
    sequence.generator = torch.Generator().manual_seed(sampling.seed or 0)
    for name, value in more.items():
        setattr(sequence, name, value)
    return sequence


def utterance(engine, text: str, sampling, **more) -> Sequence:
    """A normalised text to be said once under the sampling's seed."""
    return sequence_of(prompt_for(engine, text), sampling, **more)


def prefill(t3, prompt, cache, exaggeration: float = 0.5, more: int = 0):
    """The logits after a prompt that is run into a cache of one sequence, and its positions.

    Args:
        more: positions that are reserved behind it.
    """
    text = t3.embed(prompt, cache.rows_per_seq)
    conditioning = t3.conditioning(prompt, exaggeration)
    length = conditioning.shape[3] + text.shape[1]
    cache.reserve(0, length + more)
    last, sequence = torch.tensor([text.shape[1] - 1]), torch.tensor([0])
    return t3.prefill(text, last, conditioning, cache, sequence), length


def prefilled(t3, prompt, rows: int, exaggeration: float = 0.5):
    """The logits [rows, vocabulary] of the last position of one utterance's prefix."""
    cache = StaticKVCache(num_seqs=1, rows_per_seq=rows, shape=t3.kv_shape, like=t3.like)
    return prefill(t3, prompt, cache, exaggeration)[0]


@contextmanager
def as_on_a_gpu(t3):
    """With plain matrices: a processor has layouts of its own, which no kernel of a card reads."""
    changed = linear_onednn.use_plain(t3)
    try:
        assert fused_step.supports(t3)
        yield
    finally:
        if changed:
            linear_onednn.use_onednn(t3)


def eager_backend(steps_per_sync: int = 1, step=None, static: bool = False, fused: bool = False):
    """An eager way that looks at the tokens so rarely, and may have another step or cache."""

    def slots(t3, count, rows_per_seq):
        cache = StaticKVCache(
            num_seqs=count, rows_per_seq=rows_per_seq, shape=t3.kv_shape, like=t3.like
        )
        return DecodeState(t3, count, cache)

    backend = EagerBackend(fused=fused)
    backend.steps_per_sync = steps_per_sync
    if step is not None:
        backend.step = lambda model: step
    if static:
        backend.slots = slots
    return backend


def decode_all(t3, utterances, *, slots: int = 1, rows_per_seq: int = 2, backend=None):
    """The utterances, decoded, in their order."""
    backend = backend or eager_backend()
    ended = list(decode(t3, backend.slots(t3, slots, rows_per_seq), utterances, backend))
    assert len(ended) == len(utterances)
    return utterances


def varied_requests(engine, order: list[int] | None = None) -> list[Sequence]:
    return [utterance(engine, TEXTS[i], varied_sampling(i)) for i in order or range(len(TEXTS))]


def rows_for(sampling: Sampling) -> int:
    """Rows of an utterance: two with guidance."""
    return 2 if sampling.cfg_weight > 0 else 1


def raw_tokens(engine, text: str, sampling: Sampling) -> list[int]:
    """All of T3's tokens, before the ids that are no sound are dropped."""
    with engine.pipeline.placement("t3") as t3:
        [outputs] = decode_all(
            t3, [utterance(engine, text, sampling)], rows_per_seq=rows_for(sampling)
        )
        return list(outputs.tokens)


def prefill_logits(t3, engine):
    """Of one short text's last position, with guidance."""
    with torch.inference_mode():
        return prefilled(t3, prompt_for(engine, "Hello there."), 2).float()
