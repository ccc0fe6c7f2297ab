"""One and many are one path: a row beside others is what it is alone, whatever its length."""

from __future__ import annotations

import pytest
import torch
from helpers import fake_graph_capture
from helpers.common import SAMPLE, assert_close
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.layers import linear_onednn
from chatterbox_opt.models.flow import estimator
from chatterbox_opt.runtime import bucketing
from chatterbox_opt.runtime.bucketing import EagerExecutor
from chatterbox_opt.runtime.cuda_graphs import GraphedExecutor

ATOL = 1e-4
SCALE = 1.0  # of the mels
CPU = torch.device("cpu")


@pytest.fixture
def side_by_side(monkeypatch):
    """Groups as on a card: many rows at once."""
    monkeypatch.setattr(bucketing, "MAX_FRAMES", {})


def alone(count: int) -> torch.Generator:
    return torch.Generator().manual_seed(count)


def said(engine, sample):
    """Tokens of mixed lengths from 1 up, in mixed voices."""
    counts = (7, 1, 60, 7, 33)
    tokens = [torch.randint(0, 6561, (n,), generator=alone(n)) for n in counts]
    return tokens, [engine.voice(sample if i % 2 else None) for i in range(len(counts))]


def mel(frames):
    """Small enough that the last layer does not blow one last bit up."""
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


def test_mels_in_company_are_mels_alone(engine, side_by_side):
    with engine.pipeline.placement("flow") as flow:
        tokens, voices = said(engine, SAMPLE)
        found, expected = many(flow, tokens, voices), singly(flow, tokens, voices)
    assert [made.shape for made in found] == [(80, 2 * len(t)) for t in tokens]
    assert_rows_close(found, expected)


def test_without_its_mask_a_short_row_would_hear_the_padding(engine, side_by_side, monkeypatch):
    """Guards the test above: the difference that the mask makes is not small."""
    kept = estimator.Estimator.given
    with engine.pipeline.placement("flow") as flow:
        tokens, voices = said(engine, SAMPLE)
        expected = singly(flow, tokens, voices)
        monkeypatch.setattr(estimator.Estimator, "given", lambda net, c, _: kept(net, c, None))
        found = many(flow, tokens, voices)
    assert (found[1] - expected[1]).abs().max() > 10 * ATOL


def test_rows_of_one_length_need_no_mask(engine, side_by_side, monkeypatch):
    masks, kept = [], estimator.Estimator.given
    monkeypatch.setattr(
        estimator.Estimator, "given", lambda net, c, mask: masks.append(mask) or kept(net, c, mask)
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
    """The flow with its work recorded, and how often that was."""
    with engine.pipeline.placement("flow") as flow, torch.inference_mode():
        was_blocked = linear_onednn.use_plain(flow)  # no memory that a tape can follow
        recorded = []

        def record(work):
            recorded.append(work)
            return fake_graph_capture.record(work)

        monkeypatch.setattr(flow, "executor", GraphedExecutor(record, flow, "the flow"))
        yield flow, recorded
        if was_blocked:
            linear_onednn.use_onednn(flow)


COUNTS = (1, 2, 7, 32, 60, 61, 149, 150)


@pytest.mark.parametrize("own", [True, False])
def test_a_replayed_encoder_does_not_hear_its_padding(engine, replaying, monkeypatch, own):
    flow, recorded = replaying
    voice = engine.voice(None if own else SAMPLE)
    with monkeypatch.context() as patch:
        patch.setattr(flow, "executor", EagerExecutor())
        expected = conditions(flow, voice, COUNTS)
    prompt = voice.tokens.shape[1]
    buckets = {bucketing.bucket(prompt + count) for count in COUNTS}
    assert any(prompt + count not in buckets for count in COUNTS), "some are padded"
    for _ in range(3):  # met, recorded, replayed
        assert_rows_close(conditions(flow, voice, COUNTS), expected)
    assert len(recorded) == len(buckets) < len(COUNTS)


def test_without_zeros_behind_it_the_encoder_would_hear_its_padding(engine, replaying, monkeypatch):
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


def test_the_encoders_tables_grow_before_it_is_recorded(engine, replaying, monkeypatch):
    """They are as long as upstream's for any text; a longer one must not grow them in a capture."""
    flow, recorded = replaying
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
    assert len(recorded) == 1


def test_waves_in_company_are_waves_alone(engine, side_by_side):
    with engine.pipeline.placement("vocoder") as vocoder:
        found, expected = many(vocoder, mels()), singly(vocoder, mels())
    assert [len(wave) for wave in found] == [480 * one.shape[-1] for one in mels()]
    assert_rows_close(found, expected)


def test_tails_left_alone_would_be_heard(engine, side_by_side, monkeypatch):
    """Guards the test above, and the one of buckets."""
    with engine.pipeline.placement("vocoder") as vocoder:
        expected = singly(vocoder, mels())
        monkeypatch.setattr(bucketing.HostLengths, "zero_", lambda tails, x: x)
        found = many(vocoder, mels())
    worst = [(one - other).abs().max() for one, other in zip(found, expected, strict=True)]
    assert max(worst[:2]) > 10 * ATOL


@pytest.mark.parametrize("frames", [3, 17, 35, 125])
def test_a_bucket_changes_nothing(engine, monkeypatch, frames):
    assert frames < 16 or bucketing.bucket(frames) > frames
    with engine.pipeline.placement("vocoder") as vocoder:
        (found,) = vocoder([mel(frames)], [alone(0)])
        monkeypatch.setattr("chatterbox_opt.models.vocoder.model.bucket", lambda length: length)
        (expected,) = vocoder([mel(frames)], [alone(0)])
    assert_close(found, expected, atol=ATOL)


@given(st.integers(1, 100_000))
def test_buckets_are_few_and_waste_little(length):
    held = bucketing.bucket(length)
    assert length <= held < length * (1 + 1 / bucketing.BUCKETS_PER_OCTAVE)
    assert bucketing.bucket(held) == held


def test_sixty_seconds_have_few_buckets():
    assert len({bucketing.bucket(n) for n in range(50, 3001)}) <= 50


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40))
def test_groups_hold_everyone_once_within_the_limit(lengths):
    groups = bucketing.group_by_length(lengths, torch.device("cuda"))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) * max(lengths[i] for i in group) <= bucketing.DEFAULT_MAX_FRAMES
    assert all(len(group) == 1 for group in bucketing.group_by_length(lengths, CPU))
