"""Metrics by name, or made with options: `["accuracy", top_k(3), f_beta(2, average="samples", threshold=0.2)]`.

Most are accumulated on the device as sums (`Metric`), so that a validation pass is one program; those that need every
score at once are computed on the host (`HostMetric`). Padded rows do not count, and how the rows are split into
batches does not matter.
"""

from collections.abc import Callable, Sequence

from jaxfast.messages import first, nearest
from jaxfast.metrics.classes import accuracy, balanced_accuracy, error_rate, matthews, perplexity, top_k
from jaxfast.metrics.f_beta import accuracy_multi, f_beta, precision, recall
from jaxfast.metrics.numbers import mae, mse, r2, rmse
from jaxfast.metrics.overlap import Overlap, class_overlaps, confusion, dice, mean_iou, pixel_accuracy
from jaxfast.metrics.protocol import HostMetric, Metric, mean_of
from jaxfast.metrics.ranking import Undefined, average_precision, roc_auc

METRICS: dict[str, Metric | HostMetric] = {
    metric.name: metric
    for metric in (
        accuracy(),
        error_rate(),
        top_k(5),
        balanced_accuracy(),
        matthews(),
        perplexity(),
        *(make(average=average) for make in (f_beta, precision, recall) for average in (None, "macro", "micro")),
        *(f_beta(2, average=average) for average in (None, "macro", "micro", "samples")),
        accuracy_multi(),
        roc_auc(),
        average_precision(),
        pixel_accuracy(),
        dice(),
        mean_iou(),
        mse(),
        rmse(),
        mae(),
        r2(),
    )
}
"""The names that a learner's `metrics` takes.

- One label per example, pixel or token, and the arg max of the outputs: accuracy, error_rate, top_5_accuracy;
  balanced_accuracy, the mean recall of the classes that occur; matthews; perplexity.
- One label, or multi-hot rows beside probabilities above 0.5: precision, recall, f1, f2 (of two classes that of class
  1, of more the mean over classes), each also with _macro (the mean, of two classes as well) and _micro (all classes
  counted together); f2_samples (the mean over examples of multi-hot rows).
- Multi-hot rows: accuracy_multi.
- Scores of classes, through scikit-learn (`pip install 'jaxfast[metrics]'`): roc_auc, average_precision.
- Masks: pixel_accuracy, dice, mean_iou, in which pixels labelled losses.VOID do not count.
- Numbers: mse, rmse, mae, r2.

Each name without its suffix is a function of this package too, which takes what can be chosen: top_k(k), f_beta(beta,
average=, threshold=), precision and recall likewise, accuracy_multi(threshold), accuracy(ignore_index),
pixel_accuracy(ignore_index), dice(ignore_index), mean_iou(ignore_index). The values are scikit-learn's, with 0 where it
would divide by 0. `class_overlaps` reports them for each class.
"""

_RESERVED = ("loss", "train_loss", "valid_loss", "epoch", "seconds", "train_seconds", "step")


def resolve(metrics: str | Metric | HostMetric | Callable | Sequence) -> tuple[Metric | HostMetric, ...]:
    """Metrics from names, `Metric`s, `HostMetric`s, or functions (outputs, target) -> one value per example.

    ValueError for unknown names and for two metrics of one name; ImportError where a metric's package is missing.
    """
    if isinstance(metrics, (str, Metric, HostMetric)) or callable(metrics):
        metrics = (metrics,)
    found = tuple(_one(metric) for metric in metrics)
    names = [metric.name for metric in found]
    for metric in found:
        if metric.name in _RESERVED or names.count(metric.name) > 1:
            taken = "is reserved" if metric.name in _RESERVED else "is given twice"
            raise ValueError(f"the metric name {metric.name!r} {taken}: rename one with metric._replace(name=...)")
        if isinstance(metric, HostMetric):
            metric.ready()
    return found


def _one(metric) -> Metric | HostMetric:
    if isinstance(metric, (Metric, HostMetric)):
        return metric
    if isinstance(metric, str) and metric in METRICS:
        return METRICS[metric]
    if isinstance(metric, str):
        known = first(list(METRICS), len(METRICS))
        raise ValueError(f"unknown metric {metric!r}: give one of {known}{nearest(metric, METRICS)}")
    if callable(metric):
        if str(getattr(metric, "__module__", "")).startswith(f"{__name__}."):
            raise ValueError(f"{metric.__name__} makes a metric: give {metric.__name__}(...) or a name")
        return mean_of(getattr(metric, "__name__", type(metric).__name__), metric)
    raise ValueError(f"metric {metric!r} is a {type(metric).__name__}: give a name, a function or a Metric")


__all__ = [
    "METRICS",
    "HostMetric",
    "Metric",
    "Overlap",
    "Undefined",
    "accuracy",
    "accuracy_multi",
    "average_precision",
    "balanced_accuracy",
    "class_overlaps",
    "confusion",
    "dice",
    "error_rate",
    "f_beta",
    "mae",
    "matthews",
    "mean_iou",
    "mean_of",
    "mse",
    "perplexity",
    "pixel_accuracy",
    "precision",
    "r2",
    "recall",
    "resolve",
    "rmse",
    "roc_auc",
    "top_k",
]
