"""Any number of labels per example: how well each is told, and which examples are told worst."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxfast import plot
from jaxfast.interpret.classification import Examples, check_examples
from jaxfast.interpret.thresholds import average_precisions, best_thresholds, check_beta, check_rows, check_thresholds
from jaxfast.messages import first
from jaxfast.metrics.classes import ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Thresholds = float | Sequence[float] | np.ndarray


class Scores(NamedTuple):
    """Precision, recall and F-beta, 0..1: arrays over labels, or the average of some kind."""

    precision: np.ndarray | float
    recall: np.ndarray | float
    f_beta: np.ndarray | float


@dataclass(frozen=True, eq=False, repr=False)
class LabelReport:
    """How well each label is told, (C,) each; `label_report` makes it, `print` shows it as a table."""

    classes: tuple[str, ...]
    beta: float
    thresholds: np.ndarray
    """A probability above it is a yes."""
    scores: Scores
    average_precision: np.ndarray
    """NaN for a label without examples."""
    support: np.ndarray
    """Examples that have the label."""
    examples: int
    macro: Scores
    """The mean over labels."""
    micro: Scores
    """All labels counted together."""
    samples: Scores
    """The mean over examples."""
    accuracy: float
    """The share of right answers over all examples and labels."""

    @property
    def mean_average_precision(self) -> float:
        """The mean over the labels that occur."""
        return float(np.nanmean(self.average_precision)) if self.support.any() else float("nan")

    def __repr__(self) -> str:
        name = f"f{self.beta:g}"
        head = ("label", "threshold", "precision", "recall", name, "average precision", "support")
        number = lambda value: "-" if np.isnan(value) else f"{value:.3f}"
        columns = (self.thresholds, *self.scores, self.average_precision)
        rows = [
            (label, *map(number, values), str(count))
            for label, *values, count in zip(self.classes, *columns, self.support, strict=True)
        ]
        total = str(self.support.sum())
        averages = [
            ("macro", "", *map(number, self.macro), number(self.mean_average_precision), total),
            ("micro", "", *map(number, self.micro), "", total),
            ("samples", "", *map(number, self.samples), "", total),
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, *averages, strict=True)]
        line = lambda cells: "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        table = [line(head), *map(line, rows), "", *map(line, averages)]
        return "\n".join([*table, "", f"accuracy {self.accuracy:.3f} over {self.examples} examples"])

    def plot(self) -> Figure:
        """Draw precision, recall and F-beta of each label beside its average precision, the rarest label last."""
        order = np.argsort(-self.support, kind="stable")
        place = np.arange(len(order))[::-1]
        figure = plot.new_figure(7.5, 1.6 + 0.34 * len(order))
        ax = figure.subplots()
        spread = np.stack([self.scores.precision, self.scores.recall])[:, order]
        ax.hlines(place, spread.min(0), spread.max(0), color="0.75", linewidth=1.5, zorder=1)
        series = (
            ("precision", self.scores.precision, plot.BLUE, "o"),
            ("recall", self.scores.recall, plot.ORANGE, "o"),
            (f"f{self.beta:g}", self.scores.f_beta, plot.GREEN, "D"),
            ("average precision", self.average_precision, "0.35", "|"),
        )
        for name, values, color, marker in series:
            ax.plot(values[order], place, marker, color=color, markersize=10 if marker == "|" else 6, label=name)
        ax.set_yticks(place, [f"{self.classes[i]} ({self.support[i]})" for i in order])
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(order) - 0.4))
        ax.set_xlabel(f"score over {self.examples} examples (in brackets: with the label)")
        return plot.finish(figure, ax)


def label_report(
    probabilities: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    *,
    thresholds: Thresholds = 0.5,
    beta: float = 2.0,
) -> LabelReport:
    """Precision, recall, F-beta, average precision and support of each label, and their averages.

    `probabilities` (N, C), `targets` (N, C) of 0 and 1; `thresholds` one for all or one per label, such as
    `best_thresholds` finds; `beta`: what recall is worth beside precision. Scores are scikit-learn's, with 0 where it
    would divide by 0. ValueError for arguments that do not fit.
    """
    check_beta(beta)
    probabilities, truths = check_rows(probabilities, targets)
    _check_classes(classes, probabilities.shape[1])
    thresholds = check_thresholds(thresholds, probabilities.shape[1])
    answers = probabilities > thresholds
    parts = np.stack([answers & truths, answers, truths])

    def scores(hits, predicted, actual):
        weighed = ratio((1 + beta**2) * hits, beta**2 * actual + predicted)
        return Scores(ratio(hits, predicted), ratio(hits, actual), weighed)

    by_label, by_example = scores(*parts.sum(1)), scores(*parts.sum(2))
    return LabelReport(
        classes=tuple(str(name) for name in classes),
        beta=beta,
        thresholds=thresholds,
        scores=by_label,
        average_precision=average_precisions(probabilities, truths),
        support=truths.sum(0),
        examples=len(truths),
        macro=Scores(*(float(values.mean()) for values in by_label)),
        micro=Scores(*(float(value) for value in scores(*parts.sum((1, 2))))),
        samples=Scores(*(float(values.mean()) for values in by_example)),
        accuracy=float((answers == truths).mean()),
    )


class TopLabelLoss(NamedTuple):
    """One example, and what the model gets wrong about its labels."""

    index: int
    loss: float
    missed: tuple[str, ...]
    """Labels that it has and that are not predicted."""
    added: tuple[str, ...]
    """Labels that are predicted and that it does not have."""


@dataclass(frozen=True, eq=False)
class LabelInterpretation:
    """Predictions of any number of labels beside the true ones, row by row in the order of the data set.

    Raises ValueError where the lengths differ, or a row is not made of 0 and 1.
    """

    probabilities: np.ndarray
    """(N, C), 0..1."""
    targets: np.ndarray
    """(N, C) of 0 and 1."""
    losses: np.ndarray
    """(N,)."""
    classes: Sequence[str]
    dataset: Examples
    """`dataset[i]["image"]` is the image of row i, 0..255."""

    def __post_init__(self) -> None:
        check_examples(self.probabilities, self.targets, self.losses, self.dataset)
        check_rows(self.probabilities, self.targets)
        _check_classes(self.classes, np.shape(self.probabilities)[1])

    def __repr__(self) -> str:
        right = ((np.asarray(self.probabilities) > 0.5) == (np.asarray(self.targets) > 0.5)).mean()
        what = f"{len(self.targets)} examples of {len(self.classes)} labels ({first(self.classes, 4)})"
        return f"LabelInterpretation: {what}, {right:.4f} of the answers right, loss {np.mean(self.losses):.4f}"

    def best_thresholds(self, beta: float = 2.0) -> np.ndarray:
        """The threshold of each label that gives the largest F-beta here (`interpret.best_thresholds`)."""
        return best_thresholds(self.probabilities, self.targets, beta=beta)

    def report(self, thresholds: Thresholds = 0.5, *, beta: float = 2.0) -> LabelReport:
        """How well each label is told (`label_report`)."""
        return label_report(self.probabilities, self.targets, self.classes, thresholds=thresholds, beta=beta)

    def top_losses(self, k: int | None = None, *, thresholds: Thresholds = 0.5) -> list[TopLabelLoss]:
        """List the `k` examples with the largest losses (default: all), the worst first."""
        probabilities, truths = check_rows(self.probabilities, self.targets)
        answers = probabilities > check_thresholds(thresholds, len(self.classes))
        names = lambda row: tuple(str(self.classes[i]) for i in np.flatnonzero(row))
        order = np.argsort(-np.asarray(self.losses), kind="stable")[:k]
        return [
            TopLabelLoss(
                int(row),
                float(self.losses[row]),
                missed=names(truths[row] & ~answers[row]),
                added=names(answers[row] & ~truths[row]),
            )
            for row in order
        ]

    def plot_top_losses(self, k: int = 9, *, thresholds: Thresholds = 0.5) -> Figure:
        """Show the `k` images with the largest losses, under the labels that are missed and added."""
        rows = self.top_losses(k, thresholds=thresholds)
        images = [np.asarray(self.dataset[row.index]["image"]) for row in rows]
        titles = [
            "\n".join([*_lines("missed", row.missed), *_lines("added", row.added), f"loss {row.loss:.2f}"])
            for row in rows
        ]
        return plot.show_images(images, titles, wrong=[bool(row.missed or row.added) for row in rows])


def _lines(what: str, labels: Sequence[str]) -> list[str]:
    """`what` and the labels in lines that are no wider than a picture; nothing for no labels."""
    return textwrap.wrap(f"{what}: {', '.join(labels)}", 30) if labels else []


def _check_classes(classes: Sequence[str], columns: int) -> None:
    if len(classes) != columns:
        raise ValueError(f"{len(classes)} classes for {columns} columns of probabilities: give one each")
