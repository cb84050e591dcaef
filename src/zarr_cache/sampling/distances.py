"""Reuse distances: how many bytes of other keys were read since a key was read last."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    type Numbers = npt.NDArray[np.int64]

FIRST = -1
"""The distance of the first read of a key."""

_ROW = 32
"""Reads that are compared pair by pair."""


class Distances(NamedTuple):
    """What reads of a batch add to what was read before.

    Attributes
    ----------
    distances
        Of each read, the bytes of other keys that were read since its key was; or `FIRST`.
    last
        Where the last read of each key is, in what was read before followed by the batch: the least
        recently used first.
    """

    distances: Numbers
    last: Numbers


def reuse_distances(
    stack: Numbers, stack_sizes: Numbers, ids: Numbers, sizes: Numbers
) -> Distances:
    """The reuse distance of each read of a batch, and the new order of use.

    `stack` are the ids that were read before, each once, the least recently used first.

    Of a read at i whose key was read last at p, the others between are those at j with p < j < i
    that were not read since p themselves: ``previous[j] < p``. All j <= p have that, so it is the
    sum over all j < i, less the bytes of the batch up to p. What lies above p in the stack counts
    once, whether it is read again or not.
    """
    known = len(stack)
    everything = np.concatenate([stack, ids])
    previous = _previous(everything)
    last = np.ones(len(everything), bool)
    last[previous[previous >= 0]] = False
    of_batch = previous[known:]
    is_in_batch = of_batch >= known
    above = (
        np.concatenate([np.cumsum(stack_sizes[::-1])[::-1][1:], [0]]) if known else sizes[:1] * 0
    )
    up_to = np.cumsum(sizes)
    between = _smaller_before(of_batch, sizes)
    between += np.where(is_in_batch, 0, above[np.where(is_in_batch, 0, of_batch)])
    between -= np.where(is_in_batch, up_to[np.where(is_in_batch, of_batch - known, 0)], 0)
    return Distances(np.where(of_batch < 0, FIRST, between), np.flatnonzero(last))


def _previous(ids: Numbers) -> Numbers:
    """Where each id was before, or -1."""
    order = np.argsort(ids, kind="stable")
    is_same = ids[order[1:]] == ids[order[:-1]]
    previous = np.full(len(ids), -1, np.int64)
    previous[order[1:][is_same]] = order[:-1][is_same]
    return previous


def _smaller_before(values: Numbers, weights: Numbers) -> Numbers:
    """Of each value, the weights of those before it that are smaller.

    In rows pair by pair, and then as a merge sort does: of two halves, what is smaller on the left
    is added on the right.
    """
    rows = 1
    while rows * _ROW < len(values):
        rows *= 2
    count = rows * _ROW
    padded = np.full(count, -2, np.int64)
    padded[: len(values)] = values
    weight = np.zeros(count, np.int64)
    weight[: len(values)] = weights
    by_row = padded.reshape(rows, _ROW)
    is_smaller = (by_row[:, None, :] < by_row[:, :, None]) & np.tri(_ROW, k=-1, dtype=bool)
    found = np.matmul(is_smaller, weight.reshape(rows, _ROW, 1)).reshape(count)
    order = np.argsort(padded, kind="stable")
    half = _ROW
    while half < count:
        block = (order // (2 * half)).astype(np.int16)
        in_blocks = order[np.argsort(block, kind="stable")].reshape(-1, 2 * half)
        is_left = (in_blocks // half) % 2 == 0
        smaller = np.cumsum(np.where(is_left, weight[in_blocks], 0), axis=1)
        found[in_blocks[~is_left]] += smaller[~is_left]
        half *= 2
    of_values: Numbers = found[: len(values)]
    return of_values
