"""Metrics accumulated on the device as sums, so that a validation pass is one program and padded rows do not count.

A metric is a pair of functions: `update(outputs, target, mask)` gives a tree of sums over one batch, `compute(sums)`
turns the added sums into a float on the host. `outputs` are the model's raw outputs (logits).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxfast.messages import first, nearest


class Metric(NamedTuple):
    name: str
    update: Callable[[Array, Array, Bool[Array, " batch"]], Any]
    compute: Callable[[Any], float]


def mean_of(name: str, per_example: Callable[[Array, Array], Array], finish=lambda mean: mean) -> Metric:
    """The metric that averages `per_example(outputs, target)` (shape (batch,) or (batch, ...)) over real rows."""

    def update(outputs, target, mask):
        values = per_example(outputs, target)
        if values.shape[:1] != mask.shape:
            raise ValueError(
                f"metric {name!r} gave an array of shape {values.shape} for a batch of {mask.shape[0]}: "
                "return one value per example"
            )
        values = values.astype(jnp.float32).reshape(mask.shape[0], -1).mean(1)
        return {"sum": jnp.where(mask, values, 0.0).sum(), "count": mask.sum().astype(jnp.float32)}

    return Metric(name, update, lambda sums: float(finish(sums["sum"] / np.maximum(sums["count"], 1))))


def _correct(outputs, target):
    return outputs.argmax(-1) == target


def _top_5(outputs, target):
    if outputs.shape[-1] < 5:
        raise ValueError(f"top_5_accuracy needs at least 5 classes, the model has {outputs.shape[-1]}: use accuracy")
    return (jax.lax.top_k(outputs, 5)[1] == target[..., None]).any(-1)


def _balanced_update(outputs, target, mask):
    rows = jax.nn.one_hot(target, outputs.shape[-1], dtype=jnp.float32) * mask[:, None]
    return {"hits": (rows * _correct(outputs, target)[:, None]).sum(0), "count": rows.sum(0)}


def _balanced_compute(sums):
    seen = sums["count"] > 0
    return float((sums["hits"][seen] / sums["count"][seen]).mean())


def _squared_error(outputs, target):
    return jnp.square(outputs.reshape(target.shape) - target)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        mean_of("accuracy", _correct),
        mean_of("error_rate", lambda outputs, target: ~_correct(outputs, target)),
        mean_of("top_5_accuracy", _top_5),
        mean_of("accuracy_multi", lambda outputs, target: (outputs > 0) == (target > 0.5)),
        mean_of("mse", _squared_error),
        mean_of("rmse", _squared_error, np.sqrt),
        mean_of("mae", lambda outputs, target: jnp.abs(outputs.reshape(target.shape) - target)),
        Metric("balanced_accuracy", _balanced_update, _balanced_compute),
    )
}
"""The names that a learner's `metrics` takes.

accuracy, error_rate, top_5_accuracy: integer labels, arg max of the outputs. balanced_accuracy: mean of the recalls of
the classes that occur (scikit-learn's balanced_accuracy_score). accuracy_multi: multi-hot targets, probability above
0.5 (fastai's accuracy_multi). mse, rmse, mae: numbers.
"""


def resolve(metrics: Sequence[str | Metric | Callable]) -> tuple[Metric, ...]:
    """Metrics from names, `Metric`s, or functions (outputs, target) -> one value per example; ValueError otherwise."""
    if isinstance(metrics, str):
        metrics = (metrics,)
    found = []
    for metric in metrics:
        if isinstance(metric, Metric):
            found.append(metric)
        elif callable(metric):
            found.append(mean_of(getattr(metric, "__name__", type(metric).__name__), metric))
        elif metric in METRICS:
            found.append(METRICS[metric])
        else:
            known = first(list(METRICS), len(METRICS))
            raise ValueError(f"unknown metric {metric!r}: give one of {known}{nearest(metric, METRICS)}")
    return tuple(found)
