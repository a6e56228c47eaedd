"""Rows of a table, with a gradient that is fast on CPU."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def embed(table, index):
    """`table[index]`: rows of (n, width) for whole numbers `index` of any shape, which must lie in 0..n - 1.

    Nothing checks the indices: a check is a select for each number, there and in the gradient. Reverse-mode derivative
    only: `jax.jvp` does not pass.

    >>> embed(jnp.array([[1., 2.], [3., 4.]]), jnp.array([1, 0, 1])).tolist()
    [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]
    """
    return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def _forward(table, index):
    return embed(table, index), (table, index)


def _backward(residuals, g):
    table, index = residuals

    def scattered(zeros, index, g):
        return zeros.reshape(table.shape).at[index].add(g, mode="promise_in_bounds")

    # XLA on CPU writes rows of fewer than 64 numbers one number at a time, also when they are zeros: 2,627 x 41 of them
    # take 40 us, more than the rest of the gradient; flat, they take 5. The barrier keeps them flat.
    flat = lambda index, g: scattered(lax.optimization_barrier(jnp.zeros(table.size, g.dtype)), index, g)
    plain = lambda index, g: scattered(jnp.zeros(table.shape, g.dtype), index, g)
    return lax.platform_dependent(index, g, cpu=flat, default=plain), None


embed.defvjp(_forward, _backward)
