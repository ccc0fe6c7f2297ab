"""Sampling on a CPU: logits to tokens and the slots' counters, compiled by numba, in one call.

Responsible for the draw of each row and for what is stored with it. Not responsible for what the
parameters mean (models/t3/sampler.py) or for rows that stay undecided (models/t3/row_sampler.py).

The same tokens as PyTorch
--------------------------
sampler.py has PyTorch's softmax, whose last bits depend on the order in which it adds, and a token
must not depend on them here. What does not add is the same to the last bit: guidance, penalty,
temperature, and which of two logits is larger. Where a sum or an exponential is compared, both
sides of the comparison are computed within a margin that is far above any rounding error:

    min-p    p_i < min_p * p_max           exp(x_i - x_max) < min_p: the sum cancels    MARGIN
    top-p    a sum of the least likely     the same sum               MARGIN and ADD_MARGIN a number
    draw     the largest p_i / noise_i     exp(x_i - x_max) / noise_i, again no sum     MARGIN

and a row in which a comparison falls within the margin, one in thousands, is left ``undecided``.

Nothing is sorted. The ``top_k``-th largest logit is the largest number that at least ``top_k``
logits reach, and the cutoff of top-p the largest below which at most 1 - top_p of the sum lies.
Both are found by bisection over the bits of a float; for each of its 32 steps a pass over the
vocabulary adds up with vector instructions, probabilities or ones.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit

from chatterbox_opt.kernels.cpu.compile_cache import entry_point
from chatterbox_opt.kernels.cpu.llvm import NJIT_OPTIONS, bits_of, exp, pointer, thread_index

_TASK = ("thread_num", "num_threads", "barrier", "first", "last")
_SHAPE = ("rows_per_seq", "vocabulary", "limit")
_MODE = ("turbo", "start", "unforced", "not_finite")
_TENSORS = ("logits", "seen", "params", "noise", "token_buffer")
COUNTERS = ("last_token", "num_generated", "position")
SAMPLE = np.dtype(
    [
        (name, "i8")
        for name in (*_TASK, *_SHAPE, *_MODE, *_TENSORS, *COUNTERS, "scratch", "undecided")
    ]
)
"""Slots ``first`` to ``last`` of models/t3/decode_state.py, whose tensors these are.

vocabulary: V. limit: columns of token_buffer. turbo: 1 in the order of upstream's
``inference_turbo``. start: the start token. unforced: in token_buffer where no token is forced.
not_finite: the token of logits with NaN or Inf. logits: float32 [slots * rows_per_seq, V]. seen:
bool [slots, V]. params: float32 [slots, 6], ``SamplingTensors.values``. noise: float32 [slots, V].
token_buffer: int64 [slots, limit]. Counters: int64 [slots]. scratch: float32 [slots, 4, V].
undecided: int64 [slots], set to 1 where nothing was stored, else to 0.
"""

MARGIN = np.float32(1e-5)  # exp, quotients and noise are exact to 1e-6
ADD_MARGIN = np.float32(2e-8)  # for each number of a sum: PyTorch adds 16 at a time in float32
NUM_PARAMS = 6
UNDECIDED = -2
_NOTHING, _EVERYTHING = np.int64(-(2**31)), np.int64(2**31)  # outside of all keys

_FLOAT = np.float32
_exact = njit(nogil=True, error_model="numpy")  # each operation rounds as PyTorch's does
_sums = njit(nogil=True, **NJIT_OPTIONS)


@_exact
def _key(x):
    """An int32 that orders like the float32 x; the same for both zeros."""
    bits = bits_of(x + _FLOAT(0))
    return bits if bits >= 0 else np.int32(bits ^ np.int32(0x7FFFFFFF))


@_exact
def _guide(logits, weight, row):
    """Write the logits, with guidance if there are two rows, and return whether all are finite."""
    infinite = np.int32(0x7F800000)
    largest = np.int32(0)
    if len(logits) == 2:
        for i in range(len(row)):
            row[i] = logits[0, i] + weight * (logits[0, i] - logits[1, i])
    else:
        for i in range(len(row)):
            row[i] = logits[0, i]
    for i in range(len(row)):
        largest = max(largest, np.int32(bits_of(row[i]) & np.int32(0x7FFFFFFF)))
    return largest < infinite


@_exact
def _penalize(row, seen, penalty):
    """``sampler.apply_repetition_penalty``, in place."""
    for i in range(len(row)):
        if seen[i]:
            row[i] = row[i] * penalty if row[i] < 0 else row[i] / penalty


@_exact
def _argmax(row):
    """The first of the largest."""
    index = 0
    for i in range(len(row)):
        if row[i] > row[index]:
            index = i
    return index


@_sums
def _sum_below(values, keys, bound):
    """The sum of the values whose keys are less than ``bound``."""
    total = _FLOAT(0)
    for i in range(len(values)):
        total += values[i] if keys[i] < bound else _FLOAT(0)
    return total


@_exact
def _cutoff(values, keys, most):
    """The largest number below whose keys the values sum up to at most ``most``."""
    low, high = _NOTHING, _EVERYTHING
    while high - low > 1:
        middle = (low + high) // 2
        if _sum_below(values, keys, np.int32(middle)) <= most:
            low = middle
        else:
            high = middle
    return np.int32(low)


@_exact
def _apply_min_p(row, highest, powers, min_p):
    """Set logits to -inf in place; return whether all comparisons are decided."""
    low, high, decided = min_p * (1 - MARGIN), min_p * (1 + MARGIN), True
    for i in range(len(row)):
        decided &= (powers[i] < low) | (powers[i] > high) | (row[i] == highest)
        row[i] = _FLOAT(-np.inf) if powers[i] < low else row[i]
    return decided


@_exact
def _apply_top_k(row, keys, k, ties, ones):
    """Set logits to -inf in place; return whether it is decided which.

    Args:
        ties: all tokens as likely as the ``k``-th stay; else any of them may be left out.
        ones: scratch [V]. Sums of 1 are exact.
    """
    ones[:] = 1
    beyond = _FLOAT(len(row) - k)
    last = _cutoff(ones, keys, beyond)
    if last == _key(_FLOAT(-np.inf)):  # fewer than k are left
        return True
    if not ties and _sum_below(ones, keys, last) < beyond:
        return False
    for i in range(len(row)):
        row[i] = _FLOAT(-np.inf) if keys[i] < last else row[i]
    return True


@_exact
def _apply_top_p(row, keys, powers, tail):
    """Set the least likely logits to -inf in place, as many as sum up to at most ``tail`` of all
    probabilities; return whether it is decided which."""
    left = np.int32(0)
    for i in range(len(row)):
        powers[i] = _FLOAT(0) if row[i] == -np.inf else powers[i]
        left += np.int32(row[i] > -np.inf)
    margin = MARGIN + _FLOAT(left) * ADD_MARGIN
    bound = tail * _sum_below(powers, keys, np.int32(2**31 - 1))
    first = _cutoff(powers, keys, bound)  # the key of the first that stays
    below, power = _sum_below(powers, keys, first), _FLOAT(np.inf)
    for i in range(len(row)):
        power = powers[i] if keys[i] == first else power
        row[i] = _FLOAT(-np.inf) if keys[i] < first else row[i]
    # not decided either if some of several equally likely tokens would be left out
    return below <= bound * (1 - margin) and below + power >= bound * (1 + margin)


@_exact
def _powers(row, out):
    """Write exp(row - its maximum); return the maximum, Inf if a tiny number divided the row."""
    highest = row[_argmax(row)]
    for i in range(len(row)):
        out[i] = exp(row[i] - highest)
    return highest


@_exact
def _race(row, noise, quotients):
    """The token with the largest exp(row) / noise, or UNDECIDED."""
    if not _powers(row, quotients) < np.inf:
        return UNDECIDED
    for i in range(len(row)):
        quotients[i] /= noise[i]
    best, second, token = _FLOAT(0), _FLOAT(0), 0
    for i in range(len(row)):
        if quotients[i] > best:
            best, second, token = quotients[i], best, i
        elif quotients[i] > second:
            second = quotients[i]
    # noise may be 0; what is no number is neither larger nor smaller
    return token if best < np.inf and second <= best * (1 - MARGIN) else UNDECIDED


@_exact
def _filter(row, params, scratch, turbo):
    """Min-p, top-k and top-p in place; return whether all is decided.

    Args:
        scratch: float32 [3, V].
    """
    min_p, tail, top_k = _FLOAT(0) if turbo else params[3], params[4], params[5]
    powers, keys, decided = scratch[0], scratch[1].view(np.int32), True
    if min_p > 0 or tail > 0:
        highest = _powers(row, powers)
        decided &= highest < np.inf
        if min_p > 0:
            decided &= _apply_min_p(row, highest, powers, min_p)
    for i in range(len(row)):
        keys[i] = _key(row[i])
    if 0 < top_k < len(row):
        decided &= _apply_top_k(row, keys, np.int32(top_k), turbo, scratch[2])
    if tail > 0:
        decided &= _apply_top_p(row, keys, powers, tail)
    return decided


@_exact
def _draw(logits, seen, params, noise, scratch, turbo):
    """The token of one slot: ``sampler.sample``.

    Args:
        logits: float32 [1, V], or [2, V] with guidance.
        seen, noise: [V].
        params: float32 [6].
        scratch: float32 [4, V].

    Returns:
        The token, UNDECIDED, or -1 for logits that are not finite.
    """
    row, penalty, temperature = scratch[0], params[1], params[2]
    if not _guide(logits, params[0], row):
        return -1
    if not turbo:
        _penalize(row, seen, penalty)
    if temperature > 0:
        for i in range(len(row)):
            row[i] = row[i] / temperature
    elif not turbo:
        return _argmax(row)
    if not _filter(row, params, scratch[1:], turbo):
        return UNDECIDED
    if turbo:
        _penalize(row, seen, penalty)
    return _argmax(row) if temperature == 0 else _race(row, noise, scratch[1])


@_exact
def _store(t, slot, token, seen):
    """What ``DecodeState.sample_next`` does with a token of slot ``slot``."""
    slots = slot + 1
    generated = carray(pointer(t.num_generated), slots, np.int64)
    if t.turbo and generated[slot] == 0:  # it was in the history of the first token only
        seen[t.start] = False
    offset = slot * t.limit * 8
    tokens = carray(pointer(t.token_buffer + offset), t.limit, np.int64)
    forced = tokens[generated[slot]]
    token = token if forced == t.unforced else forced
    tokens[generated[slot]] = token
    token = max(token, 0)  # ``not_finite`` is no index of an embedding
    carray(pointer(t.last_token), slots, np.int64)[slot] = token
    seen[token] = True
    carray(pointer(t.position), slots, np.int64)[slot] += 1
    generated[slot] = min(generated[slot] + 1, t.limit - 1)


@entry_point
def sample_tokens(data):
    """One SAMPLE task, called in each thread: slots are divided."""
    t = carray(data, 1, SAMPLE)[0]
    thread, threads = thread_index(t)
    v = t.vocabulary
    for slot in range(t.first + thread, t.last, threads):
        rows = (t.rows_per_seq, v)
        logits = carray(pointer(t.logits + slot * t.rows_per_seq * v * 4), rows, np.float32)
        seen = carray(pointer(t.seen + slot * v), v, np.bool_)
        params = carray(pointer(t.params + slot * NUM_PARAMS * 4), NUM_PARAMS, np.float32)
        noise = carray(pointer(t.noise + slot * v * 4), v, np.float32)
        scratch = carray(pointer(t.scratch + slot * 4 * v * 4), (4, v), np.float32)
        token = _draw(logits, seen, params, noise, scratch, t.turbo)
        undecided = carray(pointer(t.undecided), slot + 1, np.int64)
        undecided[slot] = token == UNDECIDED
        if token != UNDECIDED:
            _store(t, slot, token if token >= 0 else t.not_finite, seen)
