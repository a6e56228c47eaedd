"""The two kinds of metric, and sums that stay exact however many rows are added."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

# Twelve bits for the low part: both parts stay below 2**31 for half a million batches and 8e12 counted things.
_LOW_BITS = 12


class Metric(NamedTuple):
    """A metric that adds up: `update(outputs, target, mask)` gives a tree of sums over the rows of a batch where `mask`
    is True, on the device; `compute(sums)` turns the added sums into a float, on the host.

    `outputs` are the model's raw outputs (logits).
    """

    name: str
    update: Callable[[Array, Array, Bool[Array, " batch"]], Any]
    compute: Callable[[Any], float]


class HostMetric(NamedTuple):
    """A metric that needs all rows at once: `compute(outputs, targets)` on the host, real rows only, raw outputs.

    `ready()` is called when the metric is chosen, long before it is computed: it raises if something is not installed.
    `check(outputs, targets)` is called before a fit with outputs of zeros and the targets of the validation set: it
    raises ValueError if the metric cannot be computed on them, whatever the outputs are.
    """

    name: str
    compute: Callable[[np.ndarray, np.ndarray], float]
    ready: Callable[[], Any] = lambda: None
    check: Callable[[np.ndarray, np.ndarray], Any] = lambda outputs, targets: None


def mean_of(name: str, per_example: Callable[[Array, Array], Array], finish: Callable = lambda mean: mean) -> Metric:
    """The metric that averages `per_example(outputs, target)` (shape (batch,) or (batch, ...)) over real rows.

    Booleans are counted exactly; numbers are summed in fp32. `finish` is applied to the mean.
    """

    def update(outputs, target, mask):
        values = jnp.asarray(per_example(outputs, target))
        if values.shape[:1] != mask.shape:
            raise ValueError(
                f"metric {name!r} gave an array of shape {values.shape} for a batch of {mask.shape[0]}: "
                "return one value per example"
            )
        values = values.reshape(mask.shape[0], -1)
        if values.dtype == bool:
            hits = jnp.sum(values & mask[:, None], dtype=jnp.int32)
            return {"sum": count(hits), "count": count(jnp.sum(mask, dtype=jnp.int32) * values.shape[1])}
        values = values.astype(jnp.float32).mean(1)
        return {"sum": jnp.where(mask, values, 0.0).sum(), "count": count(jnp.sum(mask, dtype=jnp.int32))}

    def compute(sums):
        return float(finish(total(sums["sum"]) / np.maximum(total(sums["count"]), 1)))

    return Metric(name, update, compute)


def count(n: Int[Array, "..."]) -> dict[str, Array]:
    """Whole numbers as two int32 parts that add up exactly over batches, where fp32 would round beyond 2**24."""
    return {"low": n & (2**_LOW_BITS - 1), "high": n >> _LOW_BITS}


def total(sums: dict[str, Array] | Array) -> np.ndarray:
    """The fp64 value of added `count`s, or of a plain sum.

    >>> int(total(count(jnp.int32(2**24 + 1))))
    16777217
    """
    if isinstance(sums, dict):
        return np.asarray(sums["low"], np.float64) + 2**_LOW_BITS * np.asarray(sums["high"], np.float64)
    return np.asarray(sums, np.float64)


def is_multi_hot(outputs: Array, target: Array) -> bool:
    """Whether every example has a row with a 0 or 1 per class, beside one output per class."""
    return outputs.shape == target.shape and target.ndim > 1 and target.shape[-1] > 1


def class_logits(name: str, outputs: Array, target: Array) -> tuple[Array, Array]:
    """(logits (..., classes), whole-numbered labels (...)), a single logit per label being that of class 1 of two.

    ValueError where there is not one label for each row of outputs.
    """
    if outputs.shape == target.shape:
        if target.ndim > 1 and target.shape[-1] == 1:
            target = target[..., 0]
        elif target.ndim == 1 or np.issubdtype(target.dtype, np.integer):
            outputs = outputs[..., None]
    if outputs.shape[:-1] != target.shape:
        hint = "; for multi-hot rows use accuracy_multi, f1 or roc_auc" if is_multi_hot(outputs, target) else ""
        raise ValueError(
            f"metric {name!r} takes one label for each row of outputs: the outputs have the shape {outputs.shape}, "
            f"the targets {target.shape}{hint}"
        )
    if outputs.shape[-1] == 1:
        xp = np if isinstance(outputs, np.ndarray) else jnp
        outputs = xp.concatenate([xp.zeros_like(outputs), outputs], -1)
    return outputs, target if np.issubdtype(target.dtype, np.integer) else target.astype(np.int32)
