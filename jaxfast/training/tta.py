"""Test-time augmentation: the mean prediction over augmented copies of an example, beside the plain one."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxfast.mesh import to_host
from jaxfast.training.state import TTA


def make_tta(predict: Callable, augment: Callable, prepare: Callable | None = None) -> Callable:
    """The compiled function `program(variables, batch, key, n, beta) -> predictions` that `tta` calls.

    `predict(variables, batch)` gives predictions (activated outputs) for a batch as it reaches the module, which is
    what the transforms `augment(key, batch)` of training and `prepare(batch)` of evaluation make. `n` and `beta` are
    traced.
    """

    @jax.jit
    def program(variables, batch, key, n, beta):
        plain = predict(variables, batch if prepare is None else prepare(batch))

        def add(i, total):
            return total + predict(variables, augment(jax.random.fold_in(key, i), batch))

        augmented = jax.lax.fori_loop(0, n, add, jnp.zeros_like(plain)) / n
        return augmented + beta * (plain - augmented)

    return program


def tta(
    program: Callable,
    variables: dict,
    batches: Iterable[dict],
    key: Key[Array, ""],
    *,
    n: int = 4,
    beta: float = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of `batches` on the host: the mean over `n` augmentations, moved to the plain prediction
    by `beta` (fastai's Learner.tta: n 4, beta .25; beta 1 is the plain prediction alone).

    `batches` have a "mask" entry that is False on padded rows. ValueError for n < 1 and beta outside 0..1.
    """
    if n < 1 or n != int(n):
        raise ValueError(f"n is {n}: average over at least 1 augmented prediction, a whole number")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: give the weight of the plain prediction, 0 to 1")
    key = jax.random.fold_in(key, TTA)
    waiting, parts = [], []

    def fetch():
        predictions, target, mask = to_host(waiting.pop(0))
        parts.append((predictions[mask], target[mask]))

    for i, batch in enumerate(batches):
        predictions = program(variables, batch, jax.random.fold_in(key, i), np.int32(n), np.float32(beta))
        waiting.append((predictions, batch["target"], batch["mask"]))
        if len(waiting) > 1:  # fetched after the next one is dispatched
            fetch()
    while waiting:
        fetch()
    predictions, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return predictions, targets
