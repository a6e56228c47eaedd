"""What a learner remembers of its training: one record per epoch, one row per step."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass
class SmoothLoss:
    """Exponential moving average with bias correction, as fastai's recorder smooths training losses."""

    beta: float = 0.98
    average: float = 0.0
    count: int = 0

    def update(self, loss: float) -> float:
        """The smoothed loss after one more `loss`; a NaN, of a step that did not report it, changes nothing."""
        if math.isnan(loss):
            return self.value
        self.count += 1
        self.average = self.beta * self.average + (1 - self.beta) * float(loss)
        return self.value

    @property
    def value(self) -> float:
        """The smoothed loss so far, NaN before the first one."""
        return self.average / (1 - self.beta**self.count) if self.count else math.nan


def smooth(losses: np.ndarray, beta: float = 0.98) -> np.ndarray:
    """All smoothed losses of a run.

    >>> smooth(np.array([1.0, 3.0]), beta=0.5).round(3).tolist()
    [1.0, 2.333]
    """
    state = SmoothLoss(beta)
    return np.array([state.update(loss) for loss in losses])


@dataclasses.dataclass
class History:
    """What a learner remembers of its training.

    `epochs`: a dict per epoch (epoch, train_loss, terms, valid_loss, metrics, seconds, train_seconds, step); `losses`,
    `lrs`, `momentums`: per step. `terms`: every other scalar that steps report, by name, per step too, with NaN where a
    step did not report it. `train_seconds` are `seconds` without validation. `train_loss` and the terms of an epoch are
    smoothed (beta .98, as fastai shows losses) at its end.
    """

    epochs: list[dict] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    lrs: list[np.ndarray] = dataclasses.field(default_factory=list)
    momentums: list[float] = dataclasses.field(default_factory=list)
    terms: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def copy(self) -> "History":
        """A history of its own with the same records."""
        return self.until(len(self.epochs), len(self.losses))

    def until(self, epochs: int, steps: int) -> "History":
        """A history of its own with the first `epochs` and the first `steps`."""
        terms = {name: values[:steps] for name, values in self.terms.items()}
        records = [dict(epoch) for epoch in self.epochs[:epochs]]
        return History(records, self.losses[:steps], self.lrs[:steps], self.momentums[:steps], terms)

    def add_steps(
        self, losses: np.ndarray, lrs: np.ndarray, momentums: np.ndarray, terms: Mapping[str, np.ndarray] = {}
    ) -> None:
        """Add steps: their losses, momenta and terms (steps,), and the rates of their groups (steps, groups)."""
        for name in self.terms.keys() | terms.keys():
            column = self.terms.setdefault(name, [float("nan")] * len(self.losses))
            column.extend(np.asarray(terms.get(name, np.full(len(losses), np.nan)), float).tolist())
        self.losses.extend(np.asarray(losses, float).tolist())
        self.lrs.extend(lrs)
        self.momentums.extend(np.asarray(momentums, float).tolist())

    def add_epoch(self, values: dict[str, float], seconds: float, train_seconds: float) -> None:
        times = {"seconds": seconds, "train_seconds": train_seconds}
        self.epochs.append({"epoch": len(self.epochs), **values, **times, "step": len(self.losses)})

    def plot(self):
        """A figure of the training loss of every step and the validation loss of every epoch."""
        from jaxfast import plot

        return plot.losses(
            np.array(self.losses), [e["valid_loss"] for e in self.epochs], [e["step"] for e in self.epochs]
        )

    def plot_terms(self):
        """A figure of every scalar that steps report beside the loss, such as the terms of a sum of losses."""
        from jaxfast import plot

        return plot.terms({name: np.array(values) for name, values in self.terms.items()})

    def plot_metrics(self):
        """A figure of each metric per epoch."""
        from jaxfast import plot

        known = ("epoch", "train_loss", "valid_loss", "seconds", "train_seconds", "step")
        names = [name for name in (self.epochs[0] if self.epochs else ()) if name not in known]
        return plot.metrics({name: [epoch[name] for epoch in self.epochs] for name in names})

    def plot_schedule(self):
        """A figure of the learning rate of each group and of the momentum, per step."""
        from jaxfast import plot

        return plot.schedule(np.array(self.lrs), np.array(self.momentums))

    def __len__(self) -> int:
        return len(self.epochs)

    def __repr__(self) -> str:
        if not self.epochs:
            return "History(no epoch yet)"
        names = [name for name in self.epochs[-1] if name not in ("train_seconds", "step")]
        rows = [names] + [[_shown(epoch.get(name)) for name in names] for epoch in self.epochs]
        widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
        return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def _shown(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
