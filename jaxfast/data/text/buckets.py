"""Batches of texts that are about as long as each other, in a few shapes only: a program is compiled for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxfast.data.loader import Piece, epoch_order
from jaxfast.mesh import local_rows, place_rows

BATCHES = 5
"""The purpose that is folded into the seed key for the order of batches."""


def bucket_lengths(lengths: Sequence[int], n: int, multiple: int = 8) -> tuple[int, ...]:
    """At most `n` lengths, multiples of `multiple`, that pad texts of `lengths` tokens the least.

    Each text is padded to the smallest that holds it; the largest holds them all. By dynamic programming over the
    distinct multiples.

    >>> bucket_lengths([3, 4, 5, 60, 62, 64], 2)
    (8, 64)
    """
    sizes = np.unique(-(-np.asarray(lengths) // multiple) * multiple)
    sizes = sizes[::-1][:: 1 + len(sizes) // 1000][::-1]  # enough of them to choose from
    below = np.concatenate([[0], np.cumsum(np.bincount(np.searchsorted(sizes, lengths)))])
    # cost[j]: the least padded size of the j smallest sizes; more[i, j]: of one bucket for the i-th to the j-th.
    more = np.where(np.tri(len(sizes) + 1, k=-1).T, (below - below[:, None]) * np.r_[0, sizes], np.inf)
    cost, choices = np.r_[0, np.full(len(sizes), np.inf)], []
    for _ in range(n):
        totals = cost[:, None] + more
        totals[0, 0] = 0
        choices.append(totals.argmin(0))
        cost = totals.min(0)
    chosen, j = [], len(sizes)
    for choice in reversed(choices):
        if j:
            chosen.append(int(sizes[j - 1]))
            j = choice[j]
    return tuple(sorted(set(chosen)))


class BucketOrder(NamedTuple):
    """An epoch: the texts of batch k are `index[k * batch_size :][:batch_size]`, padded to `lengths[k]`."""

    index: np.ndarray
    lengths: np.ndarray


def bucket_order(key: Key[Array, ""], epoch: int, padded: np.ndarray, batch_size: int) -> BucketOrder:
    """The order of one epoch of texts whose padded lengths are `padded`, by (key, epoch) alone.

    Texts of a bucket are shuffled; those that are left when it is cut into batches go to the next longer one, so that
    an epoch has n // batch_size full batches of the texts that `epoch_order` puts first. Batches are shuffled too, but
    one of the longest comes first, as in fastai: what does not fit in memory fails at once.
    """
    order = epoch_order(key, epoch, len(padded))
    order = order[: len(order) // batch_size * batch_size]
    batches, lengths, left = [], [], order[:0]
    for length in np.unique(padded[order]):
        pool = np.concatenate([left, order[padded[order] == length]])
        full = len(pool) // batch_size
        batches.append(pool[: full * batch_size].reshape(full, batch_size))
        lengths.append(np.full(full, length))
        left = pool[full * batch_size :]
    batches, lengths = np.concatenate(batches), np.concatenate(lengths)
    shuffled = epoch_order(jax.random.fold_in(key, BATCHES), epoch, len(batches))
    longest = int(lengths[shuffled].argmax())
    shuffled[[0, longest]] = shuffled[[longest, 0]]
    return BucketOrder(batches[shuffled].reshape(-1), lengths[shuffled])


@dataclass(frozen=True)
class BucketFeed:
    """A `TextDataset` that is brought to the device batch by batch; `training.run` reads it like `loader.Streamed`."""

    dataset: object
    batch_size: int
    mesh: Mesh

    @property
    def examples(self) -> int:
        return len(self.dataset)

    def order(self, key: Key[Array, ""], epoch: int) -> BucketOrder:
        """What `piece` reads an epoch by."""
        return bucket_order(key, epoch, self.dataset.padded, self.batch_size)

    def piece(self, order: BucketOrder, start: int, limit: int) -> Piece:
        """Batch `start` of the epoch."""
        index = order.index[start * self.batch_size : (start + 1) * self.batch_size]
        rows = self.dataset.batch(index[local_rows(self.batch_size, self.mesh)], int(order.lengths[start]))
        return Piece(place_rows(rows, self.batch_size, self.mesh), index, 0, 1)
