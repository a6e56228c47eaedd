"""Models of ratings from user and item alone: a dot product of factors, and a network over both embeddings."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.kernels.embedding import embed
from jaxfast.models.heads import sigmoid_range
from jaxfast.models.layers import BatchNorm
from jaxfast.models.tabular import emb_sz


def embedding_init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
    """A normal of deviation .01, wrapped at two deviations: its remainder by 2 (fastai's `trunc_normal_`)."""
    return 0.01 * jnp.fmod(jax.random.normal(key, shape, dtype), 2)


def _rows(table: jax.Array, index: jax.Array, train: bool) -> jax.Array:
    """Rows of `table`; from its length on, an index means nobody that was seen in training: the mean of all rows."""
    if train:
        return embed(table, index)
    last = len(table) - 1
    return jnp.where((index <= last)[:, None], embed(table, jnp.minimum(index, last)), table.mean(0))


class EmbeddingDotBias(nn.Module):
    """The dot product of a user's and an item's factors, plus a bias of each (fastai's EmbeddingDotBias).

    (B,) int32 users and (B,) int32 items to (B,) float32 ratings, between the ends of `y_range` by a sigmoid. In
    evaluation `n_users` and `n_items` stand for the unseen, who get the mean of all factors and biases. Parameters
    "user_factors" (n_users, n_factors), "item_factors", "user_bias" (n_users, 1), "item_bias": biases have two axes, so
    that weight decay reaches them as in fastai.
    """

    n_users: int
    n_items: int
    n_factors: int = 50
    y_range: tuple[float, float] | None = None

    @nn.compact
    def __call__(self, user: jax.Array, item: jax.Array, train: bool = False) -> jax.Array:
        table = lambda name, *shape: self.param(name, embedding_init, shape)
        user_factors = _rows(table("user_factors", self.n_users, self.n_factors), user, train)
        item_factors = _rows(table("item_factors", self.n_items, self.n_factors), item, train)
        user_bias = _rows(table("user_bias", self.n_users, 1), user, train)
        item_bias = _rows(table("item_bias", self.n_items, 1), item, train)
        return sigmoid_range((user_factors * item_factors).sum(-1) + user_bias[:, 0] + item_bias[:, 0], self.y_range)


class EmbeddingNN(nn.Module):
    """A network over the embeddings of user and item side by side (fastai's EmbeddingNN: widths by `emb_sz`).

    Inputs, outputs and the unseen as in `EmbeddingDotBias`. Each of `layers` is dense, ReLU, batch norm and `dropout`,
    then comes one dense output. Parameters "user_factors", "item_factors", dense0, norm0, ..., head; rng "dropout".
    """

    n_users: int
    n_items: int
    layers: Sequence[int] = (50,)
    dropout: float = 0.0
    y_range: tuple[float, float] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, user: jax.Array, item: jax.Array, train: bool = False) -> jax.Array:
        users = self.param("user_factors", embedding_init, (self.n_users, emb_sz(self.n_users)))
        items = self.param("item_factors", embedding_init, (self.n_items, emb_sz(self.n_items)))
        x = jnp.concatenate([_rows(users, user, train), _rows(items, item, train)], axis=-1).astype(self.dtype)
        kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        for i, width in enumerate(self.layers):
            x = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name=f"dense{i}")(x)
            x = BatchNorm(dtype=self.dtype, name=f"norm{i}")(nn.relu(x), train=train)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        x = nn.Dense(1, dtype=x.dtype, kernel_init=kernel_init, name="head")(x)
        return sigmoid_range(x[:, 0], self.y_range)
