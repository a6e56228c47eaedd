"""Epochs of training with validation, history, table and recipes: what every `fit_*` of a learner runs."""

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np

from jaxfast.data.loader import Resident, Streamed
from jaxfast.training.checkpoints import Checkpoints
from jaxfast.training.cycles import Rows, cut
from jaxfast.training.history import History, SmoothLoss
from jaxfast.training.loop import Pace, Publication, RunProgress, run
from jaxfast.training.preemption import Preempted, Preemption
from jaxfast.training.progress import Progress
from jaxfast.training.recipes import AfterEpoch, Verdict, keep_best
from jaxfast.training.resume import resume
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
    terms: Sequence[str] = (),
    after_epoch: Sequence[AfterEpoch] = (),
    checkpoints: Checkpoints | None = None,
    about: dict | None = None,
    pace: Pace | None = None,
    publish: Callable[[TrainState, History], None] = lambda state, history: None,
    guard: AbstractContextManager | None = None,
    quiet: bool = False,
) -> tuple[TrainState, History]:
    """Train `epochs` equal parts of `rows`; gives the state and the history in the end.

    `state` and `history` stay as they are: training begins with a copy. Every new state is given to `publish` as soon
    as it is dispatched, with a history of its own; when an exception of any kind ends the fit, the losses of all steps
    that were dispatched are in that history, so that both agree. `guard` holds interrupts back (`Interrupts.held`).

    `validate(variables)` gives {"loss": ..., and each of `metrics`}; `terms` are other scalars of a step, shown as
    columns and smoothed as the loss is. The recipes in `after_epoch` are called in order after each epoch. With
    `checkpoints`, the fit resumes from the newest one if that is its own (`resume`), and saves `about` beside each.

    Raises FloatingPointError, naming step and rate, if a loss or update is not finite; the state published last is the
    one before it. Raises `Preempted` (the process ends) when the state is saved after SIGTERM or a preemption notice,
    KeyboardInterrupt in all processes of a job without checkpoints, and ValueError for `keep_best`, which remembers in
    memory, together with checkpoints.
    """
    total, first, done, ended, verdict = len(rows["momentum"]), int(state.step), 0, 0, Verdict()
    steps, smooth = total // epochs, {name: SmoothLoss() for name in ("train_loss", *terms)}
    columns, history = (*smooth, "valid_loss", *metrics), history.copy()

    def published(new: TrainState) -> None:
        nonlocal state
        state = new
        publish(state, history)

    if checkpoints is not None:
        if checkpoints.keep_best not in (None, *columns):
            raise ValueError(f"keep_best={checkpoints.keep_best!r} is not among the metrics {', '.join(columns)}")
        if any(isinstance(recipe, keep_best) for recipe in after_epoch):
            raise ValueError("keep_best() forgets at a restart: give Checkpoints(..., keep_best=metric) instead")
        state, history, done, ended = resume(checkpoints, state, history, total)
        publish(state, history)
        if done and not quiet:
            print(f"going on from step {first + done} of {checkpoints.folder}")
        if checkpoints.passed_over and done == total:
            return state, history
        begun = len(history) - ended
        about = (about or {}) | {"fit": {"first": first, "steps": total, "begun": begun}}
        for name, values in {"train_loss": history.losses, **history.terms}.items():
            for value in values[len(values) - done :] if name in smooth else ():
                smooth[name].update(value)
        replayed = [recipe for recipe in after_epoch if getattr(recipe, "replayed", False)]
        for number in range(begun, len(history)):
            rows, verdict = _judge(replayed, number, history.epochs[number], None, rows)

    publish(state, history)
    guard = nullcontext() if guard is None else guard
    publication = Publication(published, guard)
    saved = first + done

    def record(piece: RunProgress, part: Rows, before: int) -> None:
        """Add the steps of a piece to the history, where they are not in it yet."""
        nonlocal done
        with guard:
            if before + piece.first < done or piece.halted:
                return
            seen = slice(piece.first, piece.first + len(piece.losses))
            history.add_steps(piece.losses, part["lr"][seen], part["momentum"][seen], piece.terms)
            for name, values in {"train_loss": piece.losses, **piece.terms}.items():
                for value in values if name in smooth else ():
                    smooth[name].update(value)
            done += len(piece.losses)

    def train(part: Rows, stop: Callable[[], bool], progress: Progress) -> None:
        """Run the steps of `part`; an exception finds the history with all that were dispatched."""
        before, pieces = done, run(state, chunk, feed, part, pace, stop, publication)
        try:
            for piece in pieces:
                if piece.halted:
                    raise _fault(piece, part, len(history.losses))
                record(piece, part, before)
                progress.step(done - ended * steps, smooth["train_loss"].value)
        except BaseException:
            with guard, contextlib.suppress(Exception):  # what ended the fit is what is raised
                pieces.close()
                for dispatched in publication.waiting:
                    record(dispatched.fetch(state), part, before)
            raise

    with (
        Progress(columns, epochs, steps, quiet=quiet) as progress,
        Preemption(checkpoints is not None or jax.process_count() > 1) as preemption,
    ):
        while ended < epochs and not verdict.stop:
            start, epoch_end = time.perf_counter(), (ended + 1) * steps
            while done < epoch_end and not preemption.told:
                until = epoch_end
                if checkpoints is not None:
                    until = min(epoch_end, checkpoints.next_after(first + done) - first)
                train(cut(rows, done, until), preemption.noticed, progress)
                if checkpoints is not None and first + done > saved and (done < epoch_end or preemption.told):
                    checkpoints.save(state, history, about)
                    saved = first + done
            if preemption.told:
                break
            train_seconds = time.perf_counter() - start
            results = validate(state.variables)
            seconds = time.perf_counter() - start
            shown = {name: average.value for name, average in smooth.items()}
            values = {**shown, "valid_loss": results.pop("loss"), **results}
            history.add_epoch(values, seconds, train_seconds)
            progress.end_epoch(values, seconds)
            ended += 1
            rows, verdict = _judge(after_epoch, len(history) - 1, values, state, rows)
            if checkpoints is not None:
                checkpoints.save(state, history, about, values)
                saved = first + done
    if checkpoints is not None:
        checkpoints.wait()
    if preemption.told:
        raise KeyboardInterrupt if checkpoints is None else Preempted(checkpoints.folder)
    for recipe in after_epoch:
        if hasattr(recipe, "finish"):
            published(recipe.finish(state))
    return state, history


def _judge(
    recipes: Sequence[AfterEpoch], epoch: int, values: dict, state: TrainState | None, rows: Rows
) -> tuple[Rows, Verdict]:
    """What the recipes make of an epoch: the rows with rates scaled, and whether one of them ends the fit."""
    verdicts = [verdict for recipe in recipes if (verdict := recipe(epoch, values, state))]
    for verdict in verdicts:
        rows = rows | {"lr": rows["lr"] * np.float32(verdict.lr_scale)}
    return rows, Verdict(stop=any(verdict.stop for verdict in verdicts))


def _fault(piece: RunProgress, rows: Rows, steps_before: int) -> FloatingPointError:
    last = len(piece.losses) - 1
    loss, lr = piece.losses[last], rows["lr"][piece.first + last, -1]
    what = f"the loss is {loss}" if not np.isfinite(loss) else f"the update is not finite (loss {loss:.4g})"
    return FloatingPointError(
        f"{what} at step {steps_before + last} of training (learning rate {lr:.3g}): the state before that step is "
        "kept; use a lower rate (lr_find), or look for inputs that are not finite"
    )
