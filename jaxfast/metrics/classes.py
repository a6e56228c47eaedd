"""Metrics of one label per example, pixel or token: accuracy and its kin."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxfast.losses import cross_entropy
from jaxfast.metrics.protocol import Metric, class_logits, count, mean_of, total


def likeliest(logits):
    """The arg max of (..., classes), (...); -1, which matches no label, where an output is NaN."""
    return jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1))


def tally(logits, labels, mask, ignore_index: int | None = None) -> dict:
    """Per class, over real rows: how often it is rightly predicted ("hits"), "predicted", and "actual"; exact counts.

    All that a confusion matrix tells F-beta, IoU, balanced accuracy and Matthews' coefficient, in 3 numbers per class.
    """
    real = jnp.broadcast_to(mask.reshape(-1, *[1] * (labels.ndim - 1)), labels.shape)
    if ignore_index is not None:
        real &= labels != ignore_index
    classes = jnp.arange(logits.shape[-1])
    predicted = (likeliest(logits)[..., None] == classes) & real[..., None]
    actual = (labels[..., None] == classes) & real[..., None]
    return tally_of(predicted, actual, axes=tuple(range(labels.ndim)))


def tally_of(predicted, actual, axes) -> dict:
    """The exact counts of `tally` from booleans, summed over `axes`."""
    parts = {"hits": predicted & actual, "predicted": predicted, "actual": actual}
    return {name: count(part.sum(axes, dtype=jnp.int32)) for name, part in parts.items()}


def totals(tallies: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hits, predicted, actual) of added tallies, fp64."""
    return total(tallies["hits"]), total(tallies["predicted"]), total(tallies["actual"])


def ratio(a, b) -> np.ndarray:
    """a / b, and 0 where b is 0 (scikit-learn's zero_division)."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b))), where=np.asarray(b) > 0)


def accuracy(ignore_index: int | None = None) -> Metric:
    """The share of labels that are the arg max of the outputs; labels `ignore_index` (void pixels) do not count."""
    if ignore_index is None:
        return mean_of("accuracy", lambda outputs, target: _hits("accuracy", outputs, target))

    def update(outputs, target, mask):
        logits, labels = class_logits("accuracy", outputs, target)
        real = mask.reshape(-1, *[1] * (labels.ndim - 1)) & (labels != ignore_index)
        right = real & (likeliest(logits) == labels)
        return {"sum": count(jnp.sum(right, dtype=jnp.int32)), "count": count(jnp.sum(real, dtype=jnp.int32))}

    return Metric("accuracy", update, lambda sums: float(ratio(total(sums["sum"]), total(sums["count"]))))


def error_rate() -> Metric:
    """1 - accuracy."""
    return mean_of("error_rate", lambda outputs, target: ~_hits("error_rate", outputs, target))


def top_k(k: int = 5) -> Metric:
    """top_<k>_accuracy: the share of labels among the `k` largest outputs. ValueError for fewer than `k` classes."""
    if k < 1:
        raise ValueError(f"top_k({k}): k is at least 1")
    name = f"top_{k}_accuracy"

    def per_example(outputs, target):
        logits, labels = class_logits(name, outputs, target)
        if logits.shape[-1] < k:
            raise ValueError(f"{name} needs at least {k} classes, the model has {logits.shape[-1]}: use accuracy")
        hits = (jax.lax.top_k(logits, k)[1] == labels[..., None]).any(-1)
        return hits & ~jnp.isnan(logits).any(-1)

    return mean_of(name, per_example)


def balanced_accuracy() -> Metric:
    """The mean of the recalls of the classes that occur among the labels."""

    def compute(sums):
        hits, _, actual = totals(sums)
        occurs = actual > 0
        return float(np.mean(hits[occurs] / actual[occurs])) if occurs.any() else 0.0

    return Metric("balanced_accuracy", _tally_update("balanced_accuracy"), compute)


def matthews() -> Metric:
    """Matthews' correlation coefficient for any number of classes (Gorodkin 2004), -1..1; 0 where it is undefined."""

    def compute(sums):
        hits, predicted, actual = totals(sums)
        n = actual.sum()

        def covariance(a, b):
            return n * n - a @ b

        spread = covariance(predicted, predicted) * covariance(actual, actual)
        return float((n * hits.sum() - predicted @ actual) / np.sqrt(spread)) if spread > 0 else 0.0

    return Metric("matthews", _tally_update("matthews"), compute)


def perplexity() -> Metric:
    """exp of the mean cross entropy over all labels, tokens alike (fastai's Perplexity); at most exp(700)."""

    def per_example(outputs, target):
        return cross_entropy(*class_logits("perplexity", outputs, target))

    return mean_of("perplexity", per_example, lambda mean: np.exp(np.minimum(mean, 700.0)))


def _hits(name, outputs, target):
    logits, labels = class_logits(name, outputs, target)
    return likeliest(logits) == labels


def _tally_update(name):
    return lambda outputs, target, mask: tally(*class_logits(name, outputs, target), mask)
