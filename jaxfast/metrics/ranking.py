"""Metrics of the order that scores put examples in: they need all scores at once, and are scikit-learn's."""

import numpy as np

from jaxfast._extras import need
from jaxfast.metrics.protocol import HostMetric, class_logits, is_multi_hot


class Undefined(ValueError):
    """The targets leave a metric without a value."""


def roc_auc() -> HostMetric:
    """The area under the ROC curve: the chance that an example of the class scores higher than another.

    Of two classes that of class 1; of more, and of multi-hot rows, the mean over classes, each against the rest, of
    those that have examples on both sides. `Undefined` (a ValueError) where no class has.
    """
    return _ranking("roc_auc", "roc_auc_score", lambda truths: truths.any(0) & ~truths.all(0), "on both sides of it")


def average_precision() -> HostMetric:
    """The mean precision over the ranks at which the recall grows; classes as in `roc_auc`, of those that occur."""
    return _ranking("average_precision", "average_precision_score", lambda truths: truths.any(0), "of it")


def _ranking(name: str, function: str, defined, wanted: str) -> HostMetric:
    def sklearn_metrics():
        return need("sklearn.metrics", extra="metrics", purpose="roc_auc and average_precision")

    def compute(outputs, targets):
        scores, truths = _columns(name, np.asarray(outputs), np.asarray(targets))
        if not np.isfinite(scores).all():
            return float("nan")
        columns = np.flatnonzero(defined(truths))
        if not len(columns):
            raise Undefined(f"{name} is undefined: no class has examples {wanted} among the {len(truths)} targets")
        score = getattr(sklearn_metrics(), function)
        return float(np.mean([score(truths[:, c], scores[:, c]) for c in columns]))

    return HostMetric(name, compute, sklearn_metrics, check=compute)


def _columns(name: str, outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores that grow with the probability, fp64, and truths, both (rows, columns)."""
    if is_multi_hot(outputs, targets):
        columns = targets.shape[-1]
        return outputs.astype(np.float64).reshape(-1, columns), targets.reshape(-1, columns) > 0.5
    logits, labels = class_logits(name, outputs, targets)
    logits = logits.astype(np.float64).reshape(-1, logits.shape[-1])
    labels = labels.reshape(-1)
    if logits.shape[1] == 2:
        return logits[:, 1:] - logits[:, :1], labels[:, None] == 1
    odds = np.exp(logits - logits.max(1, keepdims=True))
    # Sorted, for the last bit of a sum depends on the order and would break ties at random.
    return odds / np.sort(odds, 1).sum(1, keepdims=True), labels[:, None] == np.arange(logits.shape[1])
