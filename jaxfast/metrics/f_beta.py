"""Precision, recall and what weighs the two: for one label per example, and for multi-hot rows."""

import math

import jax.numpy as jnp

from jaxfast.metrics.classes import ratio, tally, tally_of, totals
from jaxfast.metrics.protocol import Metric, class_logits, count, is_multi_hot, mean_of, total

_AVERAGES = (None, "macro", "micro", "samples")


def f_beta(beta: float = 1.0, *, average: str | None = None, threshold: float = 0.5) -> Metric:
    """f<beta>: the harmonic mean of precision and recall, recall being worth `beta` times as much.

    Of two classes it is the score of class 1, of more the mean over the classes that occur among labels or
    predictions, of multi-hot rows the mean over all classes (scikit-learn's fbeta_score; 0 where nothing is there to
    divide by). `average`: "macro" is the mean over classes, of two as well; "micro" counts all classes together;
    "samples" is the mean over examples, for multi-hot rows (fastai v1's fbeta). `threshold`: of the probability that
    counts as a yes, for multi-hot rows (fastai's FBetaMulti). What is not the default is part of the name:
    f2_samples_at_0.2.
    """
    if not beta > 0:
        raise ValueError(f"f_beta({beta}): beta is above 0; for precision or recall alone use those metrics")

    def score(hits, predicted, actual):
        return (1 + beta**2) * hits, beta**2 * actual + predicted

    return _agreement(f"f{beta:g}", score, average, threshold)


def precision(*, average: str | None = None, threshold: float = 0.5) -> Metric:
    """The share of what is predicted as a class that is of it; arguments as in `f_beta`."""
    return _agreement("precision", lambda hits, predicted, actual: (hits, predicted), average, threshold)


def recall(*, average: str | None = None, threshold: float = 0.5) -> Metric:
    """The share of a class that is predicted as it; arguments as in `f_beta`."""
    return _agreement("recall", lambda hits, predicted, actual: (hits, actual), average, threshold)


def accuracy_multi(threshold: float = 0.5) -> Metric:
    """The share of right answers over all examples and classes of multi-hot rows (fastai's accuracy_multi)."""
    name = _name("accuracy_multi", None, threshold)

    def per_example(outputs, target):
        if outputs.shape != target.shape:
            raise ValueError(
                f"metric {name!r} takes multi-hot rows as long as the outputs: the outputs have the shape "
                f"{outputs.shape}, the targets {target.shape}; for labels use accuracy"
            )
        return ((outputs > _logit(threshold)) == (target > 0.5)) & ~jnp.isnan(outputs)

    return mean_of(name, per_example)


def _agreement(name: str, score, average: str | None, threshold: float) -> Metric:
    """The metric numerator / denominator of `score(hits, predicted, actual)`, averaged."""
    if average not in _AVERAGES:
        raise ValueError(f"average={average!r}: give macro, micro, samples or None")
    name = _name(name, average, threshold)
    bound = _logit(threshold)

    def update(outputs, target, mask):
        if is_multi_hot(outputs, target):
            actual, predicted = (target > 0.5) & _rows(mask, target), (outputs > bound) & _rows(mask, target)
            if average != "samples":
                return {"multi": tally_of(predicted, actual, axes=tuple(range(target.ndim - 1)))}
            parts = [part.sum(-1).astype(jnp.float32) for part in (predicted & actual, predicted, actual)]
            above, below = score(*parts)
            rows = jnp.broadcast_to(_rows(mask, below), below.shape)
            values = jnp.where(rows & (below > 0), above / jnp.maximum(below, 1e-9), 0.0)
            return {"sum": values.sum(), "count": count(rows.sum(dtype=jnp.int32))}
        if average == "samples":
            raise ValueError(f"metric {name!r} averages over multi-hot rows, the targets have the shape {target.shape}")
        logits, labels = class_logits(name, outputs, target)
        tallies = tally(logits, labels, mask)
        if average is None and logits.shape[-1] == 2:
            return {"binary": {part: {k: v[1:] for k, v in pair.items()} for part, pair in tallies.items()}}
        return {"classes": tallies}

    def compute(sums):
        if average == "samples":
            return float(ratio(total(sums["sum"]), total(sums["count"])))
        ((kind, tallies),) = sums.items()
        parts = totals(tallies)
        if average == "micro":
            return float(ratio(*score(*(part.sum() for part in parts))))
        values = ratio(*score(*parts))
        if kind == "classes":
            values = values[parts[1] + parts[2] > 0]
        return float(values.mean()) if values.size else 0.0

    return Metric(name, update, compute)


def _rows(mask, like):
    return mask.reshape(-1, *[1] * (like.ndim - 1))


def _logit(threshold: float) -> float:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: give a probability between 0 and 1")
    return math.log(threshold / (1 - threshold))


def _name(name: str, average: str | None, threshold: float) -> str:
    return name + (f"_{average}" if average else "") + (f"_at_{threshold:g}" if threshold != 0.5 else "")
