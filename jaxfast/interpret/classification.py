"""Where a classifier is wrong: top losses and the confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from jaxfast import plot
from jaxfast.messages import check_answer, first

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Examples(Protocol):
    """Anything with len and getitem that gives example dicts."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]: ...


class TopLoss(NamedTuple):
    """One example and how wrong the model is about it."""

    index: int
    loss: float
    actual: str
    predicted: str
    probability: float
    """Of the predicted class, 0..1."""


@dataclass(frozen=True, eq=False)
class Interpretation:
    """Predictions on a data set beside its labels, row by row in the order of the data set.

    Raises ValueError where the lengths differ or a target is no class.
    """

    probabilities: np.ndarray
    """(N, C), 0..1."""
    targets: np.ndarray
    """(N,) whole numbers."""
    losses: np.ndarray
    """(N,)."""
    classes: Sequence[str]
    dataset: Examples
    """`dataset[i]["image"]` is the image of row i, 0..255."""

    def __post_init__(self) -> None:
        rows, count = np.shape(self.probabilities)
        check_examples(self.probabilities, self.targets, self.losses, self.dataset)
        if len(self.classes) != count:
            raise ValueError(f"{len(self.classes)} classes for {count} columns of probabilities: give one each")
        targets = np.asarray(self.targets)
        if not np.issubdtype(targets.dtype, np.integer):
            raise ValueError(f"targets are {targets.dtype}: give integers from 0 to {count - 1}")
        if rows and (targets.min() < 0 or targets.max() >= count):
            wrong = targets.min() if targets.min() < 0 else targets.max()
            raise ValueError(f"a target is {wrong}: give integers from 0 to {count - 1}")

    def __repr__(self) -> str:
        rows = len(self.targets)
        right = np.argmax(self.probabilities, 1) == np.asarray(self.targets) if rows else np.zeros(0)
        found = f"accuracy {right.mean():.4f}, loss {np.mean(self.losses):.4f}" if rows else "none"
        confused = first([f"{actual} taken for {taken} ({n})" for actual, taken, n in self.most_confused()], 3)
        more = f"; {confused}" if confused else ""
        return f"Interpretation: {rows} examples of {len(self.classes)} classes, {found}{more}"

    def top_losses(self, k: int | None = None) -> list[TopLoss]:
        """List the `k` examples with the largest losses (default: all), the worst first."""
        order = np.argsort(-np.asarray(self.losses), kind="stable")[:k]
        predicted = np.argmax(self.probabilities, 1)
        return [
            TopLoss(
                index=int(row),
                loss=float(self.losses[row]),
                actual=str(self.classes[self.targets[row]]),
                predicted=str(self.classes[predicted[row]]),
                probability=float(self.probabilities[row, predicted[row]]),
            )
            for row in order
        ]

    def plot_top_losses(self, k: int = 9) -> Figure:
        """Show the `k` images with the largest losses (see `jaxfast.plot.top_losses`)."""
        rows = self.top_losses(k)
        return plot.top_losses(
            [np.asarray(self.dataset[row.index]["image"]) for row in rows],
            [row.predicted for row in rows],
            [row.actual for row in rows],
            [row.loss for row in rows],
            [row.probability for row in rows],
        )

    def confusion_matrix(self) -> np.ndarray:
        """Count the examples (C, C) by actual (row) and predicted class (column)."""
        count = len(self.classes)
        cells = np.asarray(self.targets, np.int64) * count + np.argmax(self.probabilities, 1)
        return np.bincount(cells, minlength=count * count).reshape(count, count)

    def plot_confusion_matrix(self) -> Figure:
        """Draw the confusion matrix."""
        return plot.confusion_matrix(self.confusion_matrix(), self.classes)

    def most_confused(self, min: int = 1) -> list[tuple[str, str, int]]:
        """List (actual, predicted, count) of the errors made at least `min` times, most frequent first."""
        errors = self.confusion_matrix()
        np.fill_diagonal(errors, 0)
        cells = [(int(i), int(j)) for i, j in np.argwhere(errors >= max(min, 1))]
        cells.sort(key=lambda cell: -errors[cell])
        return [(str(self.classes[i]), str(self.classes[j]), int(errors[i, j])) for i, j in cells]


def check_examples(probabilities, targets, losses, dataset) -> None:
    """Raise ValueError if there is not one target, loss and example for each row of probabilities, and `NoAnswer` if a
    probability is not finite."""
    rows = len(probabilities)
    check_answer(probabilities)
    for name, values in (("targets", targets), ("losses", losses), ("examples", dataset)):
        if len(values) != rows:
            raise ValueError(f"{len(values)} {name} for {rows} rows of probabilities: give one per row")
