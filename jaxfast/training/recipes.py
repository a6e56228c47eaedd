"""What happens after each epoch: plain functions of (epoch, metrics, state) that a fit calls in order.

`metrics` holds train_loss, valid_loss and the learner's metrics of the epoch that ended. A function returns None, or
a `Verdict`. Compose them by listing them: `learn.fit_one_cycle(10, 1e-3, after_epoch=[csv_log("log.csv"),
early_stop()])`. One that also has a method `finish(state) -> state` is called when the fit ends. One with an attribute
`monitor` is refused at once where no metric has that name. One with an attribute `replayed` is shown the epochs before
a restart again (state None), to remember them. A loss that is not finite needs no recipe: training always stops there,
with the last good state.
"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfast._extras import need
from jaxfast.messages import check_number, check_whole, first, nearest
from jaxfast.training.state import TrainState

Metrics = Mapping[str, float]
_FALLING = ("loss", "error", "mse", "rmse", "mae", "perplexity", "rmspe")


class Verdict(NamedTuple):
    """What a fit does next: end after this epoch, or go on with all learning rates times `lr_scale`."""

    stop: bool = False
    lr_scale: float = 1.0


AfterEpoch = Callable[[int, Metrics, TrainState], Verdict | None]


def _value(metrics: Metrics, monitor: str) -> float:
    if monitor not in metrics:
        raise ValueError(
            f"no metric {monitor!r} to watch: there are {first(list(metrics), 20)}{nearest(monitor, metrics)}"
        )
    return float(metrics[monitor])


def falls(metric: str) -> bool:
    """Whether less of the metric of this name is better.

    >>> falls("valid_loss"), falls("accuracy")
    (True, False)
    """
    return any(name in metric for name in _FALLING)


class _Best:
    """The best value so far; whether lower is better follows from the name unless it is said."""

    def __init__(self, monitor: str, lower: bool | None, min_delta: float = 0.0):
        lower = falls(monitor) if lower is None else lower
        self.monitor, self.sign, self.min_delta = monitor, -1.0 if lower else 1.0, min_delta
        self.value, self.epoch = None, -1

    def improved(self, epoch: int, metrics: Metrics) -> bool:
        value = _value(metrics, self.monitor)
        better = self.value is None or self.sign * (value - self.value) > self.min_delta
        if better:
            self.value, self.epoch = value, epoch
        return better


def early_stop(
    monitor: str = "valid_loss", *, patience: int = 3, min_delta: float = 0.0, lower: bool | None = None
) -> AfterEpoch:
    """End the fit when `monitor` has not improved by more than `min_delta` for `patience` epochs (fastai's
    EarlyStoppingCallback).

    `lower`: whether less is better (default: by the name; losses and errors fall). ValueError for an unknown metric.
    """
    check_whole("patience", patience)
    best, waited = _Best(monitor, lower, min_delta), 0

    def after_epoch(epoch, metrics, state):
        nonlocal waited
        waited = 0 if best.improved(epoch, metrics) else waited + 1
        return Verdict(stop=waited >= patience)

    after_epoch.monitor, after_epoch.replayed = monitor, True
    return after_epoch


def reduce_on_plateau(
    monitor: str = "valid_loss",
    *,
    factor: float = 0.1,
    patience: int = 2,
    min_delta: float = 0.0,
    lower: bool | None = None,
) -> AfterEpoch:
    """Multiply the learning rates by `factor` each time `monitor` has not improved for `patience` epochs (fastai's
    ReduceLROnPlateau). ValueError for a factor outside 0..1."""
    check_whole("patience", patience)
    check_number("factor", factor, 0, 1)
    best, waited = _Best(monitor, lower, min_delta), 0

    def after_epoch(epoch, metrics, state):
        nonlocal waited
        waited = 0 if best.improved(epoch, metrics) else waited + 1
        if waited < patience:
            return None
        waited = 0
        return Verdict(lr_scale=factor)

    after_epoch.monitor, after_epoch.replayed = monitor, True
    return after_epoch


class keep_best:  # noqa: N801 (used as a function)
    """Remember the parameters of the best epoch and put them back when the fit ends (fastai's SaveModelCallback).

    After the fit, `.epoch` and `.value` say which epoch it was. The optimizer's state stays that of the last step.
    """

    def __init__(self, monitor: str = "valid_loss", *, lower: bool | None = None):
        self._best, self._kept = _Best(monitor, lower), None

    @property
    def monitor(self) -> str:
        return self._best.monitor

    @property
    def epoch(self) -> int:
        return self._best.epoch

    @property
    def value(self) -> float | None:
        return self._best.value

    def __call__(self, epoch: int, metrics: Metrics, state: TrainState) -> None:
        if self._best.improved(epoch, metrics):
            # a copy, because the next step takes the state's memory over
            self._kept = jax.tree.map(jnp.copy, (state.params, state.model_state))

    def finish(self, state: TrainState) -> TrainState:
        if self._kept is None:
            return state
        params, model_state = jax.tree.map(jnp.copy, self._kept)
        return state.replace(params=params, model_state=model_state)


def csv_log(path: str | Path) -> AfterEpoch:
    """Append one line per epoch to a CSV file: epoch, step and the metrics; the header is written once (fastai's
    CSVLogger).

    ValueError when the file holds other columns.
    """
    path = Path(path)

    def after_epoch(epoch, metrics, state):
        row = {"epoch": epoch, "step": int(state.step), **{name: float(value) for name, value in metrics.items()}}
        fresh = not path.exists() or not path.stat().st_size
        if not fresh:
            with path.open(newline="") as file:
                columns = next(csv.reader(file))
            if columns != list(row):
                raise ValueError(
                    f"{path} has the columns {first(columns, 20)}, this fit {first(list(row), 20)}: name a new file"
                )
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    return after_epoch


class tensorboard_log:  # noqa: N801 (used as a function)
    """Write the metrics of each epoch, at the global step, as scalars for TensorBoard. Needs tensorboardX."""

    def __init__(self, folder: str | Path):
        module = need("tensorboardX", extra="tensorboard", purpose="TensorBoard logs")
        self._writer = module.SummaryWriter(str(folder), flush_secs=1)

    def __call__(self, epoch: int, metrics: Metrics, state: TrainState) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), int(state.step))

    def finish(self, state: TrainState) -> TrainState:
        # waits for the writer's thread; a later fit opens the next file
        self._writer.close()
        return state
