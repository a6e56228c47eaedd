"""A change of state that happens only when a condition holds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


def apply_if(condition: Bool[Array, ""], change: Callable, old, *arguments):
    """Return `change(old, *arguments)` where the scalar `condition` holds, else `old`, a pytree of the same structure.

    Accelerators select element by element, which fuses into the change; a branch would make a GPU wait for the host.
    XLA on CPU does not fuse the selections of a large optimizer state, so it gets a branch: AdamW over 2,627 x 41
    embeddings in a chunk, one core, jax 0.10.2: 85 to 117 us a step against 165 to 205.
    """

    def branch(condition, old, *arguments):
        return jax.lax.cond(condition, change, lambda old, *_: old, old, *arguments)

    def select(condition, old, *arguments):
        return jax.tree.map(lambda n, o: jnp.where(condition, n, o), change(old, *arguments), old)

    return jax.lax.platform_dependent(condition, old, *arguments, cpu=branch, default=select)
