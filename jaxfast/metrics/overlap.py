"""Segmentation: how far the predicted and the labelled areas overlap, over all pixels of all images."""

import numpy as np

from jaxfast.metrics.classes import ratio, tally, totals
from jaxfast.metrics.protocol import Metric, class_logits


def dice(ignore_index: int | None = None) -> Metric:
    """2 |A and B| / (|A| + |B|), 0..1: of two classes that of class 1, of more the mean over the classes that occur.

    Outputs (batch, ..., classes), integer masks (batch, ...). Pixels labelled `ignore_index` do not count, whatever is
    predicted there, nor does that class. Source: fastai's Dice and DiceMulti.
    """
    return _overlap("dice", lambda hits, sizes: ratio(2 * hits, sizes), ignore_index, binary=True)


def mean_iou(ignore_index: int | None = None) -> Metric:
    """The mean over classes of |A and B| / |A or B|, 0..1 (Jaccard), of two classes as well; classes that occur neither
    in labels nor in predictions are left out. `ignore_index` as in `dice`."""
    return _overlap("mean_iou", lambda hits, sizes: ratio(hits, sizes - hits), ignore_index, binary=False)


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
