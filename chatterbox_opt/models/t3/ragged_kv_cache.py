"""A cache for the processor: a buffer for each utterance, hardly longer than what is in it.

Knows how processors read. Knows nothing of weights, tokens or sampling.

A decode step on a processor is bound by what it reads. In one buffer for all (kv_cache.py) every
utterance is read as far as the longest of them, and the keys of one head are followed by room that
nobody reads; here each is read as far as it goes, and in one piece. Its positions are known to the
host, so nothing of this can be captured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatterbox_opt.models.t3.kv_cache import AttendFn

STRIP = 64  # positions by which a buffer grows: the copy and the room in excess cost the same

HALF_MOST = 65504.0  # the largest number of float16

Strip = tuple[Tensor, Tensor]  # of one layer, see ``RaggedCache._room``


class RaggedKVCache:
    """Keys and values of several utterances. See ``cache.Cache``.

    Attributes:
        addresses: int64 [layers, utterances, 2], of keys and values, for compiled code.
        room: int64 [utterances], positions that each one's buffers have.
    """

    def __init__(
        self, *, utterances: int, rows_per_seq: int, shape: tuple[int, int, int], like: Tensor
    ):
        """Allocate nothing yet.

        Args:
            shape: layers, heads, head_dim.
            like: has the device and dtype.
        """
        self.rows_per_seq, self._like = rows_per_seq, like
        self._layers, self._heads, self._head_dim = shape
        self._empty = [self._room(0)] * self._layers
        # a buffer for each layer: small enough to come from the heap, which keeps what is freed
        self._strips: list[list[Strip]] = [self._empty] * utterances
        self.addresses = torch.zeros(self._layers, utterances, 2, dtype=torch.long)
        self.room = torch.zeros(utterances, dtype=torch.long)

    def _room(self, positions: int) -> Strip:
        """Keys [each * heads, n, head_dim] and values [each * heads, head_dim, n]: either product
        then adds up along the axis that lies in one piece."""
        n = -(-positions // STRIP) * STRIP
        rows, width = self.rows_per_seq * self._heads, self._head_dim
        return self._like.new_empty(rows, n, width), self._like.new_empty(rows, width, n)

    def reserve(self, utterance: int, positions: int) -> None:
        """See ``KVCache``."""
        if positions <= self._strips[utterance][0][0].shape[1]:
            return
        self._strips[utterance] = strips = list(self._strips[utterance])
        for layer, (keys, values) in enumerate(strips):
            held, longer = keys.shape[1], self._room(positions)
            longer[0][:, :held] = keys
            longer[1][..., :held] = values
            # weight 0 times what happens to lie there must be 0
            longer[0][:, held:] = 0
            longer[1][..., held:] = 0
            strips[layer] = longer
        self._note(utterance)

    def _note(self, utterance: int) -> None:
        strips = self._strips[utterance]
        self.room[utterance] = strips[0][0].shape[1]
        self.addresses[:, utterance] = torch.tensor(
            [(keys.data_ptr(), values.data_ptr()) for keys, values in strips]
        )

    def prefix(self, length: int) -> int:
        """See ``KVCache``: as it is."""
        return length

    def fill(self, layer: int, utterance: Tensor, keys: Tensor, values: Tensor) -> None:
        """See ``KVCache``."""
        length, held = keys.shape[2], self._strips[int(utterance)][layer]
        if self._like.dtype == torch.float16:  # at the end of its range, not beyond
            keys, values = (x.clamp(-HALF_MOST, HALF_MOST) for x in (keys, values))
        held[0][:, :length] = keys.flatten(0, 1)
        held[1][..., :length] = values.flatten(0, 1).transpose(1, 2)

    def at(self, places: Tensor, span: int) -> AttendFn:  # noqa: ARG002 - each has its own
        """See ``KVCache``."""
        work = list(zip(places[:: self.rows_per_seq].tolist(), self._strips, strict=False))
        attend = _by_rows if self._like.dtype == torch.bfloat16 else _by_columns
        one = self.rows_per_seq * self._heads

        def layer(i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            made = torch.empty_like(q, memory_format=torch.contiguous_format)
            flat = (x.flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v, made))
            parts = zip(work, *(x.split(one) for x in flat), strict=True)
            for (place, strips), query, key, value, out in parts:
                keys, values = strips[i]
                keys[:, place] = key[:, 0]
                values[..., place] = value[:, 0]
                attend(keys, values, query, place, out)
            return made

        return layer

    def move(self, source: int, target: int) -> None:
        """See ``KVCache``."""
        self._strips[target] = self._strips[source]
        self._note(target)
        self.clear(source)

    def clear(self, utterance: int) -> None:
        """See ``KVCache``."""
        self._strips[utterance] = self._empty
        self._note(utterance)


# MKL reads a float32 matrix fastest from the left, oneDNN a bfloat16 one from the right.


def _by_columns(keys: Tensor, values: Tensor, query: Tensor, last: int, out: Tensor) -> None:
    """Attention over positions up to ``last``: [h, n, d], [h, d, n] and [h, 1, d] into the same."""
    # a column must be a row turned round: with other strides the product takes five times as long
    scores = torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2)
    scores[..., last + 1 :] = -torch.inf
    weights = torch.softmax(scores, dim=2)
    torch.bmm(values, weights.transpose(1, 2), out=out.transpose(1, 2))


def _by_rows(keys: Tensor, values: Tensor, query: Tensor, last: int, out: Tensor) -> None:
    """The same in bfloat16, softmax in float32."""
    scores = torch.bmm(query, keys.transpose(1, 2)).float()
    scores[..., last + 1 :] = -torch.inf
    weights = torch.softmax(scores, dim=2).to(query.dtype)
    torch.bmm(weights, values.transpose(1, 2), out=out)
