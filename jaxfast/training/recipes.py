"""What happens after each epoch: plain functions of (epoch, metrics, state) that a fit calls in order.

`metrics` holds train_loss, valid_loss and the learner's metrics of the epoch that ended. A function returns None, or
a `Verdict`. Compose them by listing them: `learn.fit_one_cycle(10, 1e-3, after_epoch=[csv_log("log.csv"),
early_stop()])`. One that also has a method `begin()` is told that a fit begins, so that it forgets the one before; one
with `finish(state) -> state` is called when the fit ends. One with an attribute `monitor` is refused at once where no
metric has that name. One with an attribute `replayed` is shown the epochs before a restart again (state None), to
remember them. A loss that is not finite needs no recipe: training always stops there, with the last good state.
"""

import csv
import math
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
    """The best value of a fit so far; whether lower is better follows from the name unless it is said."""

    replayed = True

    def __init__(self, monitor: str, lower: bool | None, min_delta: float = 0.0, reset_on_fit: bool = True):
        lower = falls(monitor) if lower is None else lower
        self.monitor, self.sign, self.min_delta = monitor, -1.0 if lower else 1.0, min_delta
        self.reset_on_fit = reset_on_fit
        self._forget()

    def _forget(self) -> None:
        self.value: float | None = None
        self.epoch = -1

    def begin(self) -> None:
        """A fit begins: forget the one before, unless `reset_on_fit` is False."""
        if self.reset_on_fit:
            self._forget()

    def improved(self, epoch: int, metrics: Metrics) -> bool:
        value = _value(metrics, self.monitor)
        better = self.value is None or self.sign * (value - self.value) > self.min_delta
        if better and not math.isnan(value):
            self.value, self.epoch = value, epoch
            return True
        return False


class _Patience(_Best):
    """Counts the epochs since the best one."""

    def __init__(self, monitor: str, patience: int, min_delta: float, lower: bool | None, reset_on_fit: bool):
        check_whole("patience", patience)
        self.patience = patience
        super().__init__(monitor, lower, min_delta, reset_on_fit)

    def _forget(self) -> None:
        super()._forget()
        self.waited = 0

    def over(self, epoch: int, metrics: Metrics) -> bool:
        """Whether `patience` epochs have passed without a better one."""
        self.waited = 0 if self.improved(epoch, metrics) else self.waited + 1
        return self.waited >= self.patience


class early_stop(_Patience):  # noqa: N801 (used as a function)
    """End the fit when `monitor` has not improved by more than `min_delta` for `patience` epochs (fastai's
    EarlyStoppingCallback).

    `lower`: whether less is better (default: by the name; losses and errors fall). `reset_on_fit`: each fit begins
    anew (fastai's default); False counts over several fits. Raises ValueError if no metric has that name.
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        *,
        patience: int = 3,
        min_delta: float = 0.0,
        lower: bool | None = None,
        reset_on_fit: bool = True,
    ):
        super().__init__(monitor, patience, min_delta, lower, reset_on_fit)

    def __call__(self, epoch: int, metrics: Metrics, state: TrainState) -> Verdict:
        return Verdict(stop=self.over(epoch, metrics))


class reduce_on_plateau(_Patience):  # noqa: N801 (used as a function)
    """Multiply the learning rates by `factor` each time `monitor` has not improved for `patience` epochs (fastai's
    ReduceLROnPlateau).

    `reset_on_fit` as in `early_stop`. Raises ValueError if `factor` is not in 0..1.
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        *,
        factor: float = 0.1,
        patience: int = 2,
        min_delta: float = 0.0,
        lower: bool | None = None,
        reset_on_fit: bool = True,
    ):
        check_number("factor", factor, 0, 1)
        self.factor = factor
        super().__init__(monitor, patience, min_delta, lower, reset_on_fit)

    def __call__(self, epoch: int, metrics: Metrics, state: TrainState) -> Verdict | None:
        if not self.over(epoch, metrics):
            return None
        self.waited = 0
        return Verdict(lr_scale=self.factor)


class keep_best(_Best):  # noqa: N801 (used as a function)
    """Remember the parameters of the best epoch and put them back when the fit ends (fastai's SaveModelCallback).

    After the fit, `.epoch` and `.value` say which epoch it was. The optimizer's state stays that of the last step.
    `reset_on_fit=False` keeps the best of several fits.
    """

    replayed = False

    def __init__(self, monitor: str = "valid_loss", *, lower: bool | None = None, reset_on_fit: bool = True):
        super().__init__(monitor, lower, reset_on_fit=reset_on_fit)

    def _forget(self) -> None:
        super()._forget()
        self._kept = None

    def __call__(self, epoch: int, metrics: Metrics, state: TrainState) -> None:
        if self.improved(epoch, metrics):
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
