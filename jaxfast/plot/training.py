"""Figures of a training run: learning rates, losses, metrics, and which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxfast.plot.figures import BLUE, GREEN, ORANGE, PURPLE, RED, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def lr_find(
    lrs: np.ndarray,
    losses: np.ndarray,
    raw_losses: np.ndarray | None = None,
    suggestions: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the loss against the learning rate on a logarithmic axis and mark the suggested rates.

    `losses` (n,) are the smoothed ones, `raw_losses` (n,) those of the single steps; `suggestions` gives a
    rate by name, marked on the smoothed curve.
    """
    lrs, losses = np.asarray(lrs, float), np.asarray(losses, float)
    figure = new_figure(7, 4.2)
    ax = figure.subplots()
    if raw_losses is not None:
        ax.plot(lrs, raw_losses, color="0.75", linewidth=1, label="loss of each step")
    ax.plot(lrs, losses, color=BLUE, linewidth=2, label="smoothed loss")
    for index, (name, lr) in enumerate((suggestions or {}).items()):
        height = np.interp(np.log(lr), np.log(lrs), losses)
        color = (RED, ORANGE, GREEN, PURPLE)[index % 4]
        ax.plot(lr, height, "o", color=color, markersize=8, markeredgecolor="white", label=f"{name} {lr:.1e}")
    ax.set_xscale("log")
    _limit(ax, losses)
    ax.set_xlabel("learning rate")
    ax.set_ylabel("training loss")
    return finish(figure, ax)


def schedule(lrs: np.ndarray, momentum: np.ndarray | None = None, *, groups: Sequence[str] | None = None) -> Figure:
    """Draw the learning rate of each group, (steps,) or (steps, groups), and the momentum (steps,)."""
    lrs = np.asarray(lrs, float)
    lrs = lrs[:, None] if lrs.ndim == 1 else lrs
    names = groups or [f"group {index}" for index in range(lrs.shape[1])]
    if len(names) != lrs.shape[1]:
        raise ValueError(f"{len(names)} names for {lrs.shape[1]} groups: give one per group")
    figure = new_figure(7, 3.6 if momentum is None else 5.4)
    axes = figure.subplots(1 if momentum is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    for index, name in enumerate(names):
        shade = (index + 1) / len(names)
        axes[0].plot(lrs[:, index], color=BLUE, alpha=0.3 + 0.7 * shade, linewidth=1 + shade, label=name)
    # Groups a hundred times apart are both readable only on a logarithmic axis.
    highest = lrs.max(0)
    if highest.min() > 0 and highest.max() > 20 * highest.min():
        axes[0].set_yscale("log")
    axes[0].set_ylabel("learning rate")
    if momentum is not None:
        axes[1].plot(momentum, color=ORANGE, linewidth=2)
        axes[1].set_ylabel("momentum")
    axes[-1].set_xlabel("step")
    return finish(figure, *axes, legend=lrs.shape[1] > 1)


def losses(train: np.ndarray, valid: Sequence[float] | None = None, valid_steps: Sequence[int] | None = None) -> Figure:
    """Draw the training loss of every step (steps,), smoothed, and the validation loss of every epoch.

    `valid_steps` are the numbers of steps after which `valid` was measured. The average is debiased and
    exponential, over a twentieth of the run, at most 50 steps (fastai: always 50).
    """
    train = np.asarray(train, float)
    steps = np.arange(1, len(train) + 1)
    smoothed = _smooth(train, beta=min(max(1 - 20 / len(train), 0), 0.98))
    figure = new_figure(7, 4.2)
    ax = figure.subplots()
    ax.plot(steps, train, color=BLUE, alpha=0.25, linewidth=0.8, label="train, each step")
    ax.plot(steps, smoothed, color=BLUE, linewidth=2, label="train, smoothed")
    seen = smoothed
    if valid is not None:
        ax.plot(valid_steps, valid, "o-", color=ORANGE, linewidth=2, markersize=5, label="valid, each epoch")
        seen = np.concatenate([smoothed, np.asarray(valid, float)])
    _limit(ax, seen)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    return finish(figure, ax)


def terms(values: Mapping[str, np.ndarray]) -> Figure:
    """Draw each scalar that steps report, (steps,) under its name, in axes of its own: every step, and smoothed.

    A step whose value is NaN did not report it, and is left out.
    """
    figure, axes = _axes_for(values, "terms")
    for ax, (name, series) in zip(axes, values.items(), strict=False):
        seen = np.flatnonzero(~np.isnan(series))
        smoothed = _smooth(series[seen], beta=min(max(1 - 20 / max(len(seen), 1), 0), 0.98))
        ax.plot(seen + 1, series[seen], color=BLUE, alpha=0.25, linewidth=0.8)
        ax.plot(seen + 1, smoothed, color=BLUE, linewidth=2)
        ax.set_ylabel(name.replace("_", " "))
        ax.set_xlabel("step")
    return finish(figure, *axes[: len(values)], legend=False)


def _axes_for(values: Mapping, what: str):
    """(figure, axes) with a place for each value, up to three beside each other; places that stay free are blank."""
    if not values:
        raise ValueError(f"there are no {what} to draw: give at least one")
    columns = min(len(values), 3)
    rows = math.ceil(len(values) / columns)
    figure = new_figure(max(4.2 * columns, 5), 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(values) :]:
        ax.axis("off")
    return figure, axes


def metrics(values: Mapping[str, Sequence[float]]) -> Figure:
    """Draw each metric, a value per epoch under its name, in axes of its own."""
    figure, axes = _axes_for(values, "metrics")
    from matplotlib.ticker import MaxNLocator

    for ax, (name, series) in zip(axes, values.items(), strict=False):  # the last row may have free places
        ax.plot(range(1, len(series) + 1), series, "o-", color=BLUE, linewidth=2, markersize=5)
        ax.set_ylabel(name.replace("_", " "))
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return finish(figure, *axes[: len(values)], legend=False)


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix (C, C), a row per actual class; the shade is the share of the row.

    The numbers are written for up to 50 classes, zeros for up to 10.
    """
    counts = np.asarray(counts)
    number = len(classes)
    if counts.shape != (number, number):
        raise ValueError(f"counts of shape {counts.shape} for {number} classes: give ({number}, {number})")
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = max(min(0.55, 11 / number), 0.1)  # inches
    figure = new_figure(cell * number + 3.4, cell * number + 2.2, "compressed")
    ax = figure.subplots()
    shades = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    font = min(10, 0.45 * 72 * cell)
    names = [str(name) for name in classes]
    ax.set_xticks(range(number), names, fontsize=font, rotation=90 if number > 3 else 0)
    ax.set_yticks(range(number), names, fontsize=font)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for row, column in np.ndindex(counts.shape) if number <= 50 else ():
        if counts[row, column] or number <= 10:
            color = "white" if share[row, column] > 0.5 else "0.2"
            text = str(counts[row, column])
            ax.text(column, row, text, color=color, fontsize=font, ha="center", va="center")
    ax.set_xlabel("predicted")
    ax.set_ylabel("actual")
    bar = figure.colorbar(shades, ax=ax, shrink=0.8)
    bar.set_label("share of the actual class", labelpad=8)
    bar.outline.set_visible(False)
    return figure


def _limit(ax, values: np.ndarray) -> None:
    """Fit the vertical axis to the finite values; single noisy steps may leave it."""
    values = values[np.isfinite(values)]
    if len(values) and values.max() > values.min():
        room = 0.06 * (values.max() - values.min())
        ax.set_ylim(values.min() - room, values.max() + room)


def _smooth(values: np.ndarray, beta: float) -> np.ndarray:
    average, smoothed = 0.0, np.empty(len(values))
    for index, value in enumerate(values):
        average = beta * average + (1 - beta) * value
        smoothed[index] = average / (1 - beta ** (index + 1))
    return smoothed
