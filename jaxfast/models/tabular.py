"""A network over a table's columns (fastai's TabularModel; Guo and Berkhahn 2016 for the embeddings)."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.heads import sigmoid_range
from jaxfast.models.layers import BatchNorm


def emb_sz(n: int) -> int:
    """The width of an embedding of `n` categories, the unknown one counted (fastai's emb_sz_rule).

    >>> [emb_sz(n) for n in (3, 10, 100, 100_000)]
    [3, 6, 21, 600]
    """
    return min(600, round(1.6 * n**0.56))


class TabularNet(nn.Module):
    """Embeddings of categories beside normalised numbers, then dense layers (fastai's TabularModel).

    (B, columns) int categories and (B, columns) float numbers to (B, n_out) in float32. `sizes` are (categories, width)
    of each embedding; every category lies in 0..categories - 1. Layers are fastai's LinBnDrop
    with the dense part first: dense without bias, ReLU, batch norm, dropout; the last is dense alone. `ps`: the dropout
    after each layer (one number for all); `embed_p`: the dropout of embeddings. `y_range` (low, high) bends the outputs
    by a sigmoid. Kernels start as in torch's Linear, U(-1, 1) / sqrt(fan in), embeddings as a truncated normal of
    deviation .01. Parameter "embedding" (see `vectors`), layers norm_numbers, dense0, norm0, dense1, ..., head; rng
    "dropout".
    """

    sizes: Sequence[tuple[int, int]]
    n_out: int
    layers: Sequence[int] = (200, 100)
    ps: float | Sequence[float] = 0.0
    embed_p: float = 0.0
    y_range: tuple[float, float] | None = None
    dtype: Any = jnp.float32

    @property
    def offsets(self) -> tuple[int, ...]:
        """The first row of each column in the table "embedding", then how many rows it has."""
        return tuple(accumulate((n for n, _ in self.sizes), initial=0))

    def vectors(self, params: dict, i: int) -> jax.Array:
        """The embedding of column `i`, (categories, width)."""
        return params["embedding"][self.offsets[i] : self.offsets[i + 1], : self.sizes[i][1]]

    @nn.compact
    def __call__(self, categories: jax.Array, numbers: jax.Array, train: bool = False) -> jax.Array:
        ps = (self.ps,) * len(self.layers) if isinstance(self.ps, (int, float)) else tuple(self.ps)
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        parts = []
        if self.sizes:
            # One table for all columns, as wide as the widest: one gather, one leaf for the optimizer, a third less to
            # compile.
            shape = (self.offsets[-1], max(width for _, width in self.sizes))
            table = self.param("embedding", nn.initializers.truncated_normal(0.01), shape, jnp.float32)
            # Codes lie within their column's rows by construction, so no bounds are checked.
            rows = table.at[categories + jnp.array(self.offsets[:-1])].get(mode="promise_in_bounds")
            columns = [rows[:, i, :width] for i, (_, width) in enumerate(self.sizes)]
            embedded = jnp.concatenate(columns, axis=-1).astype(self.dtype)
            parts.append(nn.Dropout(self.embed_p, deterministic=not train)(embedded))
        if numbers.shape[-1]:
            parts.append(BatchNorm(dtype=self.dtype, name="norm_numbers")(numbers, train=train))
        x = jnp.concatenate(parts, axis=-1)
        for i, (width, p) in enumerate(zip(self.layers, ps, strict=True)):
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name=f"dense{i}")(x)
            x = BatchNorm(dtype=self.dtype, name=f"norm{i}")(nn.relu(x), train=train)
            x = nn.Dropout(p, deterministic=not train)(x)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        x = nn.Dense(self.n_out, dtype=x.dtype, kernel_init=kernel_init, name="head")(x)
        return sigmoid_range(x, self.y_range)
