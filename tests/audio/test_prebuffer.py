from __future__ import annotations

import math
import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.audio.prebuffer import (
    Playback,
    Prebuffer,
    needed,
    needed_for,
    simulate,
    smallest_prebuffer,
)

SECONDS = st.floats(0.01, 5)
EXACT = st.integers(1, 300).map(lambda n: n / 64)
STREAMS = st.lists(st.tuples(EXACT, EXACT), min_size=1, max_size=12).map(
    lambda pieces: list(
        zip(accumulate(work for work, _ in pieces), [s for _, s in pieces], strict=True)
    )
)


@pytest.mark.parametrize(
    ("speed", "pieces", "buffer"),
    [
        (2.0, [], 0.0),
        (2.0, [1.0, 1.0], 0.5),
        (2.0, [1.0, 4.0, 4.0], 1.5),  # the longer piece is there 2.5 s from now, 1 s before it
        (1.0, [1.0, 1.0, 1.0], 1.0),
        (0.5, [1.0, 1.0, 1.0], 4.0),  # there after 6 s; 2 s come before
    ],
)
def test_the_buffer_lasts_until_each_piece_is_there(speed, pieces, buffer):
    assert needed(speed, pieces) == pytest.approx(buffer)


@pytest.mark.parametrize(
    ("speed", "piece", "total", "buffer"),
    [
        (2.0, 1.0, None, 0.5),
        (2.0, 4.0, 1.0, 0.5),
        (0.5, 1.0, 3.0, 4.0),
        (0.5, 9.0, 3.0, 6.0),
        (0.9, 1.0, None, math.inf),
    ],
)
def test_the_buffer_for_equal_pieces(speed, piece, total, buffer):
    assert needed_for(speed, piece, total) == pytest.approx(buffer)


@given(st.floats(0.2, 5), st.integers(1, 30), SECONDS)
@settings(max_examples=100, deadline=None)
def test_both_reckonings_agree(speed, count, piece):
    expected = needed(speed, [piece] * count)
    assert needed_for(speed, piece, piece * count) == pytest.approx(expected)


@given(st.floats(0.2, 5), st.lists(SECONDS, min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_it_is_the_smallest_that_never_runs_dry(speed, pieces):
    buffer = needed(speed, pieces)
    times = [t / speed for t in accumulate(pieces)]
    arrivals = list(zip(times, pieces, strict=True))
    assert simulate([(0.0, buffer * 1.001), *arrivals]).underruns == 0
    assert simulate([(0.0, buffer * 0.99), *arrivals]).underruns > 0


def test_a_simulated_player_counts_what_is_missing():
    arrivals = [(1.0, 0.5), (2.0, 0.5), (2.25, 1.0), (4.5, 1.0)]
    assert simulate(arrivals) == Playback(1.0, 2, 1.5)
    assert simulate(arrivals, 0.5) == Playback(2.0, 1, 0.5)
    assert simulate(arrivals, 1.0) == Playback(2.25, 1, 0.25)
    assert simulate(arrivals, 2.0) == Playback(4.5, 0, 0.0)
    assert simulate(arrivals, 99.0) == Playback(4.5, 0, 0.0)
    assert smallest_prebuffer(arrivals) == 2.0


@given(STREAMS)
@settings(max_examples=60, deadline=None)
def test_the_smallest_prebuffer_is_enough_and_no_smaller_one_is(arrivals):
    smallest = smallest_prebuffer(arrivals)
    assert simulate(arrivals, smallest).underruns == 0
    if smallest > 0:
        assert simulate(arrivals, math.nextafter(smallest, 0)).underruns > 0


@pytest.mark.parametrize("schedule", [(0.4, 1.0, 2.0, 4.0), (4.0,), (0.4,), ()])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_machine_faster_than_the_sound_never_runs_dry(schedule, is_known):
    numbers = random.Random(7)
    for _ in range(100):
        speed, at, arrivals = numbers.uniform(1.3, 4), 0.0, []
        count = numbers.randint(1, 20)
        for index in range(count):
            seconds = schedule[min(index, len(schedule) - 1)] if schedule else 1.0
            at += seconds / speed * numbers.uniform(0.95, 1.05) + (0.1 if index == 0 else 0)
            arrivals.append((at, seconds))
        total = sum(s for _, s in arrivals) if is_known else None
        heard = simulate(arrivals, Prebuffer(0.0, schedule=schedule, total=total))
        assert heard.underruns == 0


def test_a_slow_machine_starts_when_the_rest_will_be_ready_in_time():
    arrivals = [(2.0 * n, 1.0) for n in range(1, 11)]  # half as fast as the sound
    heard = simulate(arrivals, Prebuffer(0.0, total=10.0))
    assert heard.underruns == 0
    assert 10 < heard.started < 20
    assert simulate(arrivals, Prebuffer(0.0)).started == 20  # it cannot know


def test_a_speed_from_before_decides_at_the_first_piece():
    first = (1.0, 0.6)  # slow, as the text had to be read
    assert not _with(first, Prebuffer(0.0, schedule=(0.6, 1.0))).is_enough()
    assert _with(first, Prebuffer(0.0, schedule=(0.6, 1.0), speed=3.0)).is_enough()


def test_the_only_piece_starts_at_once():
    assert _with((5.0, 1.0), Prebuffer(0.0, total=1.0)).is_enough()
    assert not Prebuffer(0.0).is_enough()


def _with(arrival: tuple[float, float], prebuffer: Prebuffer) -> Prebuffer:
    prebuffer.add(*arrival)
    return prebuffer


def test_one_part_that_came_soon_does_not_hide_how_slow_the_others_are():
    """As measured with four streams at once: the second part came at 3 times real time."""
    arrivals = [(0.22, 0.4), (0.76, 1.6), (3.2, 4.0), (3.39, 0.4)]
    parts = (0.4, 1.6, 4.0)
    assert simulate(arrivals, Prebuffer(0.0, schedule=parts)).underruns == 1
    assert simulate(arrivals, Prebuffer(0.0, schedule=parts, speed=1.77)).underruns == 0
