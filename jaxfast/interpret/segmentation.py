"""Where a segmentation is wrong: which pictures, which classes, and what they are taken for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxfast import plot
from jaxfast.interpret.classification import Examples, check_examples
from jaxfast.losses import VOID
from jaxfast.metrics import Overlap, class_overlaps, confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TopMaskLoss(NamedTuple):
    """One picture and how wrong the model is about it."""

    index: int
    loss: float
    accuracy: float
    """The share of its pixels, void ones left out, that are right; 0 where all are void."""


@dataclass(frozen=True, eq=False)
class SegmentationInterpretation:
    """Predicted and true masks of a data set, row by row in its order. Pixels labelled VOID count in nothing.

    Raises ValueError where the lengths or sizes differ.
    """

    probabilities: np.ndarray
    """(N, H, W, C), 0..1."""
    targets: np.ndarray
    """(N, H, W) class numbers, VOID for none."""
    losses: np.ndarray
    """(N,)."""
    classes: Sequence[str]
    dataset: Examples
    """`dataset[i]["image"]` is the picture of row i, 0..255, of which the model sees the middle."""

    def __post_init__(self) -> None:
        check_examples(self.probabilities, self.targets, self.losses, self.dataset)
        wanted = (*np.shape(self.targets), len(self.classes))
        if np.shape(self.probabilities) != wanted:
            raise ValueError(
                f"probabilities of shape {np.shape(self.probabilities)} for masks {np.shape(self.targets)} of "
                f"{len(self.classes)} classes: give {wanted}"
            )

    def __repr__(self) -> str:
        real = np.asarray(self.targets) != VOID
        right = (self.masks == self.targets)[real].mean() if real.any() else np.nan
        what = f"{len(self.targets)} masks of {len(self.classes)} classes"
        return f"SegmentationInterpretation: {what}, {right:.4f} of the pixels right, loss {np.mean(self.losses):.4f}"

    @cached_property
    def masks(self) -> np.ndarray:
        """The likeliest class of every pixel, uint8 (N, H, W)."""
        return np.stack([scores.argmax(-1).astype(np.uint8) for scores in self.probabilities])

    def report(self) -> list[Overlap]:
        """How well each class is found, in the order of the classes: see `metrics.class_overlaps`."""
        return class_overlaps(self.masks, self.targets, self.classes)

    def top_losses(self, k: int | None = None) -> list[TopMaskLoss]:
        """List the `k` pictures with the largest losses (default: all), the worst first."""
        rows = []
        for row in np.argsort(-np.asarray(self.losses), kind="stable")[:k]:
            real = self.targets[row] != VOID
            right = (self.masks[row] == self.targets[row])[real]
            rows.append(TopMaskLoss(int(row), float(self.losses[row]), float(right.mean()) if len(right) else 0.0))
        return rows

    def plot_top_losses(self, k: int = 5) -> Figure:
        """Show the `k` pictures with the largest losses, their true and their predicted masks, a row each."""
        rows = [row.index for row in self.top_losses(k)]
        height, width = self.targets.shape[1:]
        images = [_middle(np.asarray(self.dataset[row]["image"]), height, width) for row in rows]
        return plot.show_segmentation(images, self.targets[rows], self.masks[rows], self.classes)

    def confusion_matrix(self) -> np.ndarray:
        """Count the pixels (C, C) by actual (row) and predicted class (column)."""
        return confusion(self.masks, self.targets, len(self.classes))

    def plot_confusion_matrix(self) -> Figure:
        """Draw the confusion matrix in percent of each class's pixels, whose counts have no room."""
        counts = self.confusion_matrix()
        share = np.round(100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(int)
        return plot.confusion_matrix(share, self.classes)

    def most_confused(self, k: int = 10) -> list[tuple[str, str, int]]:
        """List (actual, predicted, pixels) of the `k` most frequent errors."""
        errors = self.confusion_matrix()
        np.fill_diagonal(errors, 0)
        order = np.argsort(-errors, axis=None, kind="stable")[:k]
        cells = [tuple(map(int, np.unravel_index(cell, errors.shape))) for cell in order]
        return [(str(self.classes[i]), str(self.classes[j]), int(errors[i, j])) for i, j in cells if errors[i, j]]


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
