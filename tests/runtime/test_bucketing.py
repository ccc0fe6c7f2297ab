"""A sequence in a padded batch gives what it gives alone, whatever its length."""

from __future__ import annotations

import pytest
import torch
from helpers import fake_graph_capture
from helpers.common import SAMPLE, assert_close
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.checkpoints import loader
from chatterbox_opt.layers import linear_onednn
from chatterbox_opt.models.flow import estimator
from chatterbox_opt.runtime import bucketing
from chatterbox_opt.runtime.bucketing import EagerExecutor
from chatterbox_opt.runtime.cuda_graphs import GraphedExecutor

ATOL = 1e-4
SCALE = 1.0  # of the mels
CPU = torch.device("cpu")


@pytest.fixture
def batched(monkeypatch):
    """Groups as on a GPU: many rows at once."""
    monkeypatch.setattr(bucketing, "MAX_FRAMES", {})


def alone(count: int) -> torch.Generator:
    return torch.Generator().manual_seed(count)


def outputs(engine, sample):
    """Tokens of mixed lengths from 1 up, in mixed voices."""
    counts = (7, 1, 60, 7, 33)
    tokens = [torch.randint(0, 6561, (n,), generator=alone(n)) for n in counts]
    return tokens, [engine.voice(sample if i % 2 else None) for i in range(len(counts))]


def mel(frames):
    """Small enough that the last layer does not amplify a difference in the last bit."""
    return torch.randn(80, frames, generator=alone(frames)) * SCALE


def mels():
    lengths = (30, 2, 121, 57, 64)
    return [mel(n) for n in lengths]


def many(stage, *lists):
    return stage(*lists, [alone(i) for i in range(len(lists[0]))])


def singly(stage, *lists):
    return [
        stage(*([item] for item in row), [alone(i)])[0]
        for i, row in enumerate(zip(*lists, strict=True))
    ]


def assert_rows_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, atol=ATOL)


def test_mels_of_a_batch_are_those_of_single_rows(engine, batched):
    with engine.pipeline.placement("flow") as flow:
        tokens, voices = outputs(engine, SAMPLE)
        found, expected = many(flow, tokens, voices), singly(flow, tokens, voices)
    assert [made.shape for made in found] == [(80, 2 * len(t)) for t in tokens]
    assert_rows_close(found, expected)


def test_without_its_mask_a_short_row_would_depend_on_the_padding(engine, batched, monkeypatch):
    """Guards the test above: the mask makes a large difference."""
    kept = estimator.Estimator.condition
    with engine.pipeline.placement("flow") as flow:
        tokens, voices = outputs(engine, SAMPLE)
        expected = singly(flow, tokens, voices)
        monkeypatch.setattr(estimator.Estimator, "condition", lambda net, c, _: kept(net, c, None))
        found = many(flow, tokens, voices)
    assert (found[1] - expected[1]).abs().max() > 10 * ATOL


def test_rows_of_one_length_need_no_mask(engine, batched, monkeypatch):
    masks, kept = [], estimator.Estimator.condition
    monkeypatch.setattr(
        estimator.Estimator,
        "condition",
        lambda net, c, mask=None: masks.append(mask) or kept(net, c, mask),
    )
    tokens, voices = [torch.arange(9), torch.arange(9) * 7], [engine.voice()] * 2
    with engine.pipeline.placement("flow") as flow:
        found = many(flow, tokens, voices)
        assert masks == [None]
        assert_rows_close(found, singly(flow, tokens, voices))


def conditions(flow, voice, counts):
    tokens = [torch.randint(0, 6561, (1, n), generator=alone(n)) for n in counts]
    return [flow.encode(row, voice) for row in tokens]


@pytest.fixture
def replaying(engine, monkeypatch):
    """The flow with its work captured, and the list of captures."""
    with engine.pipeline.placement("flow") as flow, torch.inference_mode():
        was_blocked = linear_onednn.use_plain(
            flow
        )  # oneDNN's layout cannot be traced by the fake capture
        captured = []

        def record(work):
            captured.append(work)
            return fake_graph_capture.record(work)

        monkeypatch.setattr(flow, "executor", GraphedExecutor(record, flow, "the flow"))
        yield flow, captured
        if was_blocked:
            linear_onednn.use_onednn(flow)


COUNTS = (1, 2, 7, 32, 60, 61, 149, 150)


@pytest.mark.parametrize("own", [True, False])
def test_a_replayed_encoder_does_not_depend_on_its_padding(engine, replaying, monkeypatch, own):
    flow, captured = replaying
    voice = engine.voice(None if own else SAMPLE)
    with monkeypatch.context() as patch:
        patch.setattr(flow, "executor", EagerExecutor())
        expected = conditions(flow, voice, COUNTS)
    prompt = voice.tokens.shape[1]
    buckets = {bucketing.bucket(prompt + count) for count in COUNTS}
    assert any(prompt + count not in buckets for count in COUNTS), "some are padded"
    for _ in range(3):  # warmed up, captured, replayed
        assert_rows_close(conditions(flow, voice, COUNTS), expected)
    assert len(captured) == len(buckets) < len(COUNTS)


def test_without_zeroed_padding_the_encoder_would_depend_on_it(engine, replaying, monkeypatch):
    """Guards the test above."""
    flow, _ = replaying
    count, plain = 150, torch.Tensor.masked_fill
    length = count + engine.voice().tokens.shape[1]
    assert bucketing.bucket(length) > length
    (expected,) = conditions(flow, engine.voice(), [count])
    monkeypatch.setattr(
        torch.Tensor,
        "masked_fill",
        lambda x, mask, value: x if value == 0 and mask.dim() == 3 else plain(x, mask, value),
    )
    (found,) = conditions(flow, engine.voice(), [count])
    assert (found - expected).abs().max() > 10 * ATOL


def test_the_encoders_tables_grow_before_it_is_captured(engine, replaying, monkeypatch):
    """They are as long as upstream's for any text; a longer one must not grow them in a capture."""
    flow, captured = replaying
    for embed in (flow.encoder.embed, flow.encoder.up_embed):
        short = embed.pos_enc.position_encoding(offset=0, size=40)
        monkeypatch.setattr(embed.pos_enc, "pe", short.clone())
    with monkeypatch.context() as patch:
        patch.setattr(flow, "executor", EagerExecutor())
        (expected,) = conditions(flow, engine.voice(), [60])
    for embed in (flow.encoder.embed, flow.encoder.up_embed):
        embed.pos_enc.pe = short.clone()
    for _ in range(3):
        (found,) = conditions(flow, engine.voice(), [60])
        assert_close(found, expected, atol=ATOL)
    assert len(captured) == 1


@pytest.fixture(scope="module")
def plain_vocoder(engine):
    """By PyTorch's convolutions, as on a GPU."""
    return loader.load_vocoder(engine.checkpoint)


def test_waves_of_a_batch_are_those_of_single_rows(engine, plain_vocoder, batched):
    with engine.pipeline.placement("vocoder") as vocoder:
        for one in (vocoder, plain_vocoder):
            found, expected = many(one, mels()), singly(one, mels())
            assert [len(wave) for wave in found] == [480 * mel.shape[-1] for mel in mels()]
            assert_rows_close(found, expected)


def test_padding_that_is_not_zeroed_would_change_the_waves(plain_vocoder, batched, monkeypatch):
    """Guards the test above and the one of buckets."""
    expected = singly(plain_vocoder, mels())
    monkeypatch.setattr(bucketing.HostLengths, "zero_", lambda mask, x: x)
    found = many(plain_vocoder, mels())
    worst = [(one - other).abs().max() for one, other in zip(found, expected, strict=True)]
    assert max(worst[:2]) > 10 * ATOL


@pytest.mark.parametrize("frames", [3, 17, 35, 125])
def test_a_bucket_changes_nothing(plain_vocoder, monkeypatch, frames):
    assert frames < 16 or bucketing.bucket(frames) > frames
    (found,) = plain_vocoder([mel(frames)], [alone(0)])
    monkeypatch.setattr("chatterbox_opt.models.vocoder.hift.bucket", lambda length: length)
    (expected,) = plain_vocoder([mel(frames)], [alone(0)])
    assert_close(found, expected, atol=ATOL)


@given(st.integers(1, 100_000))
def test_buckets_are_few_with_little_padding(length):
    held = bucketing.bucket(length)
    assert length <= held < length * (1 + 1 / bucketing.BUCKETS_PER_OCTAVE)
    assert bucketing.bucket(held) == held


def test_sixty_seconds_have_few_buckets():
    assert len({bucketing.bucket(n) for n in range(50, 3001)}) <= 50


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_groups_hold_every_row_once_within_the_limit(lengths):
    groups = bucketing.group_by_length(lengths, torch.device("cuda"))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[i] for i in group) <= bucketing.DEFAULT_MAX_FRAMES
    assert all(len(group) == 1 for group in bucketing.group_by_length(lengths, CPU))
