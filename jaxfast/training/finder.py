"""The learning-rate finder (Smith 2015; fastai's lr_find): a short run of rising rates, and where to read it."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from jaxfast.data.loader import Resident, Streamed
from jaxfast.schedules import lr_range
from jaxfast.training.cycles import hyper_rows
from jaxfast.training.history import smooth
from jaxfast.training.loop import Pace, run
from jaxfast.training.state import TrainState, copy_state


@dataclasses.dataclass(frozen=True)
class LRFinder:
    """What a learning-rate search saw: rates, losses as seen and smoothed, each of shape (steps run,).

    `steps` is how many were asked for. Each suggestion is fastai's function of the same name.
    """

    lrs: np.ndarray
    raw_losses: np.ndarray
    losses: np.ndarray
    steps: int

    @functools.cached_property
    def valley(self) -> float:
        """About halfway down the longest fall of the smoothed loss (fastai's default suggestion)."""
        lrs, losses = self._trimmed
        end, length = _longest_fall(losses)
        # fastai counts from end - length, not from the subsequence's first index.
        return float(lrs[max(end - length + length // 3 + length // 6, 0)])

    @functools.cached_property
    def slide(self) -> float:
        """The left end of a window of 15 steps that slides down from the highest rate until the slopes at its two ends
        differ by at most .005: the right edge of the gentle part of the curve."""
        lrs, losses = self._trimmed
        if len(losses) < 2:
            return float(lrs[0])
        slopes = np.gradient(losses)
        lefts = np.arange(len(lrs) - 16, -1, -1)
        if not len(lefts):
            return float(lrs[0])
        level = np.abs(slopes[lefts + 15] - slopes[lefts]) <= 0.005
        # fastai returns the last window that was still too steep.
        steps = int(level.argmax()) if level.any() else len(lefts)
        return float(lrs[lefts[max(steps - 1, 0)]])

    @functools.cached_property
    def minimum(self) -> float:
        """A tenth of the rate with the lowest smoothed loss (fastai's `minimum`)."""
        lrs, losses = self._trimmed
        return float(lrs[losses.argmin()] / 10)

    @functools.cached_property
    def steep(self) -> float:
        """The rate where the smoothed loss falls most steeply per decade (fastai's `steep`)."""
        lrs, losses = self._trimmed
        if len(lrs) < 2:
            return float(lrs[0])
        slopes = np.diff(losses) / np.diff(np.log(lrs))
        return float(lrs[slopes.argmin()])

    @property
    def suggestions(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("valley", "slide", "minimum", "steep")}

    @property
    def _trimmed(self) -> tuple[np.ndarray, np.ndarray]:
        # fastai drops the first tenth of the search and the last five points; a search too short for that keeps all.
        first, last = self.steps // 10, len(self.lrs) - 5
        if last - first < 3:
            first, last = 0, len(self.lrs)
        return self.lrs[first:last], self.losses[first:last]

    def plot(self):
        """The smoothed and raw losses against the rate (logarithmic), with the four suggestions marked."""
        from jaxfast import plot

        return plot.lr_find(self.lrs, self.losses, self.raw_losses, self.suggestions)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.2e}" for name, value in self.suggestions.items())
        return f"LRFinder({len(self.lrs)} steps: {shown})"


def _longest_fall(losses: np.ndarray) -> tuple[int, int]:
    """(index of the last element, length) of the longest decreasing subsequence; the earliest of equals."""
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        longer = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + longer.max(initial=0)
    end = int(lengths.argmax())
    return end, int(lengths[end])


def lr_find(
    state: TrainState,
    chunk: Callable,
    feed: Resident | Streamed,
    *,
    start: float = 1e-7,
    end: float = 10.0,
    steps: int = 100,
    n_groups: int = 1,
    momentum: float = 0.9,
    weight_decay: float = 0.01,
    pace: Pace | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> LRFinder:
    """Train a copy of `state` with rates rising from `start` to `end` and record the losses; `state` is left as it is.

    Ends early when the smoothed loss exceeds four times its best, or is not finite (fastai's LRFinder). Uses the
    program `chunk` that training uses. ValueError for rates that do not rise or fewer than 2 steps;
    FloatingPointError when the first loss is not finite.
    """
    if not 0 < start < end:
        raise ValueError(f"lr_find goes from start to end with 0 < start < end, got {start:g} and {end:g}")
    if steps < 2:
        raise ValueError(f"lr_find needs at least 2 steps, got {steps}")
    rates = [lr_range(steps, start, end)] * n_groups
    rows = hyper_rows(steps, rates, momentum, weight_decay)
    raw = np.empty(0)
    for piece in run(copy_state(state), chunk, feed, rows, pace):
        raw = np.concatenate([raw, piece.losses.astype(np.float64)])
        smoothed = smooth(raw)
        best = np.minimum.accumulate(smoothed)
        bad = ~np.isfinite(raw) | (smoothed > 4 * best)
        on_progress(len(raw))
        if bad.any():
            n = int(bad.argmax())
            raw = raw[: n + 1] if np.isfinite(raw[n]) else raw[:n]
            break
    if len(raw) == 0:
        raise FloatingPointError(
            f"lr_find: the loss is not finite at the first step (rate {start:g}): check the inputs and the model"
        )
    return LRFinder(rows["lr"][: len(raw), -1].astype(np.float64), raw, smooth(raw), steps)
