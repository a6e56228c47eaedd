"""Epochs of training with validation, history, table and recipes: what every `fit_*` of a learner runs."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxfast.data.loader import Resident, Streamed
from jaxfast.training.history import History, SmoothLoss
from jaxfast.training.loop import Pace, Rows, RunProgress, run
from jaxfast.training.progress import Progress
from jaxfast.training.recipes import AfterEpoch
from jaxfast.training.state import TrainState


def fit_epochs(
    state: TrainState,
    chunk: Callable,
    feed: Resident | Streamed,
    rows: Rows,
    epochs: int,
    *,
    validate: Callable[[dict], dict[str, float]],
    metrics: Sequence[str],
    history: History,
    after_epoch: Sequence[AfterEpoch] = (),
    pace: Pace | None = None,
    quiet: bool = False,
) -> Iterator[TrainState]:
    """Train `epochs` equal parts of `rows`, yielding the newest state after every dispatch, so that whoever iterates
    holds a good state when a fit is interrupted.

    `validate(variables)` gives {"loss": ..., and each of `metrics`}; `history` is added to. The recipes in
    `after_epoch` are called in order after each epoch. FloatingPointError, naming step and rate, when a loss or
    update is not finite; the state yielded last is the one before it.
    """
    steps, smooth = len(rows["momentum"]) // epochs, SmoothLoss()
    with Progress(("train_loss", "valid_loss", *metrics), epochs, steps, quiet=quiet) as progress:
        for epoch in range(epochs):
            start, train_loss = time.perf_counter(), float("nan")
            part = {name: values[epoch * steps : (epoch + 1) * steps] for name, values in rows.items()}
            for piece in run(state, chunk, feed, part, pace):
                state = piece.state
                yield state
                if piece.halted:
                    raise _fault(piece, part, len(history.losses))
                done = slice(piece.first, piece.first + len(piece.losses))
                history.add_steps(piece.losses, part["lr"][done], part["momentum"][done])
                for loss in piece.losses:
                    train_loss = smooth.update(loss)
                progress.step(done.stop, train_loss)
            results = validate(state.variables)
            seconds = time.perf_counter() - start
            values = {"train_loss": train_loss, "valid_loss": results.pop("loss"), **results}
            history.add_epoch(values, seconds)
            progress.end_epoch(values, seconds)
            verdicts = [verdict for recipe in after_epoch if (verdict := recipe(len(history) - 1, values, state))]
            for verdict in verdicts:
                rows = rows | {"lr": rows["lr"] * np.float32(verdict.lr_scale)}
            if any(verdict.stop for verdict in verdicts):
                break
    for recipe in after_epoch:
        if hasattr(recipe, "finish"):
            state = recipe.finish(state)
    yield state


def _fault(piece: RunProgress, rows: Rows, steps_before: int) -> FloatingPointError:
    last = len(piece.losses) - 1
    loss, lr = piece.losses[last], rows["lr"][piece.first + last, -1]
    what = f"the loss is {loss}" if not np.isfinite(loss) else f"the update is not finite (loss {loss:.4g})"
    return FloatingPointError(
        f"{what} at step {steps_before + last} of training (learning rate {lr:.3g}): the state before that step is "
        "kept; use a lower rate (lr_find), or look for inputs that are not finite"
    )
