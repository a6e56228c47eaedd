"""Segmentation: how far the predicted and the labelled areas overlap, over all pixels of all images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxfast.losses import VOID
from jaxfast.metrics.classes import accuracy, ratio, tally, totals
from jaxfast.metrics.protocol import Metric, class_logits


def pixel_accuracy(ignore_index: int | None = VOID) -> Metric:
    """The share of pixels whose class is the arg max of the outputs; pixels labelled `ignore_index` do not count (the
    course's acc_camvid)."""
    return accuracy(ignore_index)._replace(name="pixel_accuracy")


def dice(ignore_index: int | None = VOID) -> Metric:
    """2 |A and B| / (|A| + |B|), 0..1: of two classes that of class 1, of more the mean over the classes that occur.

    Outputs (batch, ..., classes), integer masks (batch, ...). Pixels labelled `ignore_index` do not count, whatever is
    predicted there, nor does that class. Source: fastai's Dice and DiceMulti.
    """
    return _overlap("dice", lambda hits, sizes: ratio(2 * hits, sizes), ignore_index, binary=True)


def mean_iou(ignore_index: int | None = VOID) -> Metric:
    """The mean over classes of |A and B| / |A or B|, 0..1 (Jaccard), of two classes as well; classes that occur neither
    in labels nor in predictions are left out. `ignore_index` as in `dice`."""
    return _overlap("mean_iou", lambda hits, sizes: ratio(hits, sizes - hits), ignore_index, binary=False)


class Overlap(NamedTuple):
    """How well one class is found, 0..1 each: `recall` is the share of its pixels that are found (its accuracy),
    `precision` the share of what is found that is right; `pixels` are those labelled with it."""

    label: str
    iou: float
    dice: float
    recall: float
    precision: float
    pixels: int


def class_overlaps(
    predicted: np.ndarray, target: np.ndarray, classes: Sequence[str], *, ignore_index: int | None = VOID
) -> list[Overlap]:
    """The overlap of every class over all pixels, in the order of `classes`; 0 where there is nothing to divide by.

    `predicted`: whole numbers of the shape of `target`, or scores with one number per class behind (such as
    `learn.get_preds()` gives), of which the largest counts. ValueError for other shapes.
    """
    counts = confusion(predicted, target, len(classes), ignore_index=ignore_index)
    hits, found, actual = np.diag(counts), counts.sum(0), counts.sum(1)
    both, either = found + actual, found + actual - hits
    columns = ratio(hits, either), ratio(2 * hits, both), ratio(hits, actual), ratio(hits, found)
    return [
        Overlap(str(label), *(float(column[i]) for column in columns), int(actual[i]))
        for i, label in enumerate(classes)
    ]


def confusion(
    predicted: np.ndarray, target: np.ndarray, n_classes: int, *, ignore_index: int | None = VOID
) -> np.ndarray:
    """Pixels (n_classes, n_classes) by actual (row) and predicted class (column); arguments as in `class_overlaps`."""
    if predicted.shape not in (target.shape, (*target.shape, n_classes)):
        raise ValueError(
            f"predictions of shape {predicted.shape} for masks {target.shape} of {n_classes} classes: give "
            f"{target.shape} or {(*target.shape, n_classes)}"
        )
    counts = np.zeros(n_classes * n_classes, np.int64)
    for guess, truth in zip(predicted, target, strict=True):  # image by image: scores are large
        guess = guess.argmax(-1) if predicted.ndim > target.ndim else guess
        real = truth != ignore_index
        cells = truth[real].astype(np.int64) * n_classes + guess[real]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(n_classes, n_classes)


def _overlap(name: str, score, ignore_index: int | None, *, binary: bool) -> Metric:
    def update(outputs, target, mask):
        return tally(*class_logits(name, outputs, target), mask, ignore_index)

    def compute(sums):
        hits, predicted, actual = totals(sums)
        values = score(hits, predicted + actual)
        if binary and len(values) == 2:
            return float(values[1])
        keep = (predicted + actual > 0) & (np.arange(len(values)) != ignore_index)
        return float(values[keep].mean()) if keep.any() else 0.0

    return Metric(name, update, compute)
