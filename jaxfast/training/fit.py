"""Epochs of training with validation, history, table and recipes: what every `fit_*` of a learner runs."""

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np

from jaxfast.data.loader import Resident, Streamed
from jaxfast.mesh import anywhere
from jaxfast.training.checkpoints import Checkpoints
from jaxfast.training.cycles import Rows, cut
from jaxfast.training.good import GoodState
from jaxfast.training.history import History, SmoothLoss
from jaxfast.training.loop import Pace, Publication, RunProgress, run
from jaxfast.training.preemption import Preempted, Preemption
from jaxfast.training.progress import Progress
from jaxfast.training.recipes import AfterEpoch, Verdict, keep_best
from jaxfast.training.resume import resume, schedule
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
    keep_good: bool = True,
    quiet: bool = False,
) -> tuple[TrainState, History]:
    """Train `epochs` equal parts of `rows`; return the state and the history in the end.

    `state` and `history` stay as they are: training begins with a copy. Every new state is given to `publish` as soon
    as it is dispatched, with a history of its own; when an exception of any kind ends the fit, the losses of all steps
    that were dispatched are in that history, so that both agree.

    Args:
        chunk: the compiled steps (`make_chunk`, its constants bound).
        feed: what the steps read.
        rows: the hyper-parameters of every step.
        validate: a function (variables) -> {"loss": ..., and each of `metrics`}.
        metrics: names of the metrics, columns of the table.
        terms: other scalars of a step, shown as columns and smoothed as the loss is.
        after_epoch: recipes, called in order after each epoch; those with a method `begin` are told of the start.
        checkpoints: where the fit saves, and from where it resumes if the newest one is its own (`resume`).
        about: saved beside each checkpoint.
        pace: how many steps make a dispatch.
        publish: given every new state and the history.
        guard: a context that holds interrupts back (`Interrupts.held`).
        keep_good: where a step is not finite, go back to the state of the start, or of the last sane epoch
            (`GoodState`); False stays at the state before that step.
        quiet: show nothing.

    Raises FloatingPointError, naming the step, its rate and the step gone back to, if a loss or update is not finite.
    Raises `Preempted` (the process ends) when the state is saved after SIGTERM or a preemption notice,
    KeyboardInterrupt in all processes of a job without checkpoints, and ValueError for `keep_best`, which remembers in
    memory, together with checkpoints. Training data that one process of several cannot read, or an error of one of its
    recipes, end the fit in all of them: the others raise RuntimeError.
    """
    fit = _Fit(state, history, rows, epochs, ("train_loss", *terms), metrics, after_epoch, publish, guard)
    if checkpoints is not None and not fit.resume(checkpoints, about or {}, quiet):
        return fit.state, fit.history
    return fit.run(chunk, feed, validate, pace or Pace(), keep_good=keep_good, quiet=quiet)


class _Fit:
    """One fit: how much of it is over, its newest state, and its history."""

    def __init__(
        self,
        state: TrainState,
        history: History,
        rows: Rows,
        epochs: int,
        averaged: Sequence[str],
        metrics: Sequence[str],
        after_epoch: Sequence[AfterEpoch],
        publish: Callable[[TrainState, History], None],
        guard: AbstractContextManager | None,
    ):
        self.state, self.history, self.rows = state, history.copy(), rows
        self.epochs, self.total, self.first = epochs, len(rows["momentum"]), int(state.step)
        self.steps = self.total // epochs
        self.done, self.ended = 0, 0  # steps and epochs that are over
        self.smooth = {name: SmoothLoss() for name in averaged}
        self.columns = *averaged, "valid_loss", *metrics
        self.after_epoch, self.verdict = after_epoch, Verdict()
        self.publish, self.guard = publish, nullcontext() if guard is None else guard
        self.publication = Publication(self._published, self.guard)
        self.checkpoints, self.about, self.saved, self.values = None, {}, self.first, None
        for recipe in after_epoch:
            if hasattr(recipe, "begin"):
                recipe.begin()

    def _published(self, state: TrainState) -> None:
        self.state = state
        self.publish(state, self.history)

    def resume(self, checkpoints: Checkpoints, about: dict, quiet: bool) -> bool:
        """Take over the newest checkpoint if it is of this fit; return False where all of the fit was over then."""
        if checkpoints.keep_best not in (None, *self.columns):
            raise ValueError(f"keep_best={checkpoints.keep_best!r} is not among the metrics {', '.join(self.columns)}")
        if any(isinstance(recipe, keep_best) for recipe in self.after_epoch):
            raise ValueError("keep_best() forgets at a restart: give Checkpoints(..., keep_best=metric) instead")
        found = resume(checkpoints, self.state, self.history, self.rows, about)
        self.state, self.history, self.done, self.ended = found
        self.publish(self.state, self.history)
        if self.done and not quiet:
            print(f"resuming from step {self.first + self.done} of {checkpoints.folder}")
        if checkpoints.passed_over and self.done == self.total:
            return False
        begun = len(self.history) - self.ended
        self.checkpoints, self.saved = checkpoints, self.first + self.done
        fit = {"first": self.first, "steps": self.total, "begun": begun, "schedule": schedule(self.rows)}
        self.about = about | {"fit": fit}
        history = {"train_loss": self.history.losses, **self.history.terms}
        self._average({name: values[len(values) - self.done :] for name, values in history.items()})
        replayed = [recipe for recipe in self.after_epoch if getattr(recipe, "replayed", False)]
        for number in range(begun, len(self.history)):
            self._judge(replayed, number, self.history.epochs[number], None)
        return True

    def run(
        self,
        chunk: Callable,
        feed: Resident | Streamed,
        validate: Callable,
        pace: Pace,
        *,
        keep_good: bool,
        quiet: bool,
    ) -> tuple[TrainState, History]:
        """Train what is left of the fit."""
        self.publish(self.state, self.history)
        good = GoodState(self.state, self.history) if keep_good else None
        with (
            Progress(self.columns, self.epochs, self.steps, quiet=quiet) as progress,
            Preemption(self.checkpoints is not None or jax.process_count() > 1) as preemption,
        ):
            train = lambda rows: self._train(rows, chunk, feed, pace, preemption.noticed, progress, good)
            while self.ended < self.epochs and not self.verdict.stop:
                began = time.perf_counter()
                self._train_epoch(train, preemption)
                if preemption.told:
                    break
                train_seconds = time.perf_counter() - began
                results = validate(self.state.variables)
                seconds = time.perf_counter() - began
                self._end_epoch(results, seconds, train_seconds, progress, good)
        if self.checkpoints is not None:
            self._written()
        if preemption.told:
            raise KeyboardInterrupt if self.checkpoints is None else Preempted(self.checkpoints.folder)
        for recipe in self.after_epoch:
            if hasattr(recipe, "finish"):
                self._published(recipe.finish(self.state))
        return self.state, self.history

    def _train_epoch(self, train: Callable[[Rows], None], preemption: Preemption) -> None:
        """Run the rest of an epoch, with the checkpoints that are due in it."""
        end = (self.ended + 1) * self.steps
        while self.done < end and not preemption.told:
            until = end
            if self.checkpoints is not None:
                until = min(end, self.checkpoints.next_after(self.first + self.done) - self.first)
            train(cut(self.rows, self.done, until))
            here = self.first + self.done
            if self.checkpoints is not None and here > self.saved and (self.done < end or preemption.told):
                self._save()

    def _end_epoch(
        self, results: dict, seconds: float, train_seconds: float, progress: Progress, good: GoodState | None
    ) -> None:
        shown = {name: average.value for name, average in self.smooth.items()}
        values = {**shown, "valid_loss": results.pop("loss"), **results}
        self.history.add_epoch(values, seconds, train_seconds)
        progress.end_epoch(values, seconds)
        self.ended += 1
        if good is not None:  # an interrupt may come within: it ends the fit, which then does not go back
            good.end_epoch(self.state, self.history, values["valid_loss"])
        failed = None
        try:
            self._judge(self.after_epoch, len(self.history) - 1, values, self.state)
        except Exception as error:  # of a recipe: the other processes must not wait for this one
            failed = error
        self._agree(failed)
        if self.checkpoints is not None:
            self._save(values)

    def _save(self, values: dict[str, float] | None = None) -> None:
        self.checkpoints.save(self.state, self.history, self.about, values)
        self.saved, self.values = self.first + self.done, values

    def _written(self) -> None:
        """Wait for the last checkpoint; if it could not be written, try again with the state, which is the same."""
        try:
            self.checkpoints.wait()
        except OSError as error:
            warnings.warn(f"{error}; trying again", RuntimeWarning, stacklevel=2)
            self._save(self.values)
            self.checkpoints.wait()

    def _judge(self, recipes: Sequence[AfterEpoch], epoch: int, values: dict, state: TrainState | None) -> None:
        """Ask recipes about an epoch: they may scale the rates, or end the fit."""
        verdicts = [verdict for recipe in recipes if (verdict := recipe(epoch, values, state))]
        for verdict in verdicts:
            self.rows = self.rows | {"lr": self.rows["lr"] * np.float32(verdict.lr_scale)}
        self.verdict = Verdict(stop=any(verdict.stop for verdict in verdicts))

    def _train(
        self,
        rows: Rows,
        chunk: Callable,
        feed: Resident | Streamed,
        pace: Pace,
        stop: Callable[[], bool],
        progress: Progress,
        good: GoodState | None,
    ) -> None:
        """Run the steps of `rows`; an exception finds the history with all that were dispatched."""
        before, pieces = self.done, run(self.state, chunk, feed, rows, pace, stop, self.publication)
        try:
            for piece in pieces:
                self._record(piece, rows, before)
                if piece.halted:
                    with self.guard:
                        pieces.close()
                        self.publication.waiting.clear()
                        error = self._go_back(piece, rows, good)
                    raise error
                progress.step(self.done - self.ended * self.steps, self.smooth["train_loss"].value)
        except BaseException:
            with self.guard, contextlib.suppress(Exception):  # what ended the fit is what is raised
                pieces.close()
                for dispatched in self.publication.waiting:
                    piece = dispatched.fetch(self.state)
                    self._record(piece, rows, before)
                    if piece.halted:
                        self._go_back(piece, rows, good)
                        break
            raise
        self._agree(self.publication.error, good)

    def _agree(self, error: Exception | None, good: GoodState | None = None) -> None:
        """Raise `error`, and an error in all other processes of the job; they are back at `good` then, if given."""
        if not anywhere(error is not None):
            return
        if good is not None:
            with self.guard:
                self.state, self.history = good.restored(self.history)
                self.publish(self.state, self.history)
        if error is not None:
            raise error
        step = len(self.history.losses)
        raise RuntimeError(f"another process of this job failed, its output says why; all are at step {step}")

    def _record(self, piece: RunProgress, rows: Rows, before: int) -> None:
        """Add the steps of a piece to the history, where they are not in it yet, without one that is not finite."""
        with self.guard:
            count = len(piece.losses) - piece.halted
            if before + piece.first < self.done or count <= 0:
                return
            seen, terms = slice(piece.first, piece.first + count), {k: v[:count] for k, v in piece.terms.items()}
            losses = piece.losses[:count]
            self.history.add_steps(losses, rows["lr"][seen], rows["momentum"][seen], terms)
            self._average({"train_loss": losses, **terms})
            self.done += count

    def _average(self, columns: dict[str, Sequence[float]]) -> None:
        for name in columns.keys() & self.smooth.keys():
            for value in columns[name]:
                self.smooth[name].update(value)

    def _go_back(self, piece: RunProgress, rows: Rows, good: GoodState | None) -> FloatingPointError:
        """Leave a step that is not finite, the last of `piece`, behind; return the error that says so."""
        at = len(piece.losses) - 1
        loss, lr, step = piece.losses[at], rows["lr"][piece.first + at, -1], len(self.history.losses)
        if good is None:
            self.state = self.state.replace(step=self.state.step - 1)  # it changed nothing else
            kept = "the state before that step is kept"
        else:
            self.state, self.history = good.restored(self.history)
            kept = f"the learner is back at step {len(self.history.losses)}, "
            kept += "the start of the fit" if self.state.step == self.first else "the end of its last good epoch"
        self.publish(self.state, self.history)
        what = f"the loss is {loss}" if not np.isfinite(loss) else f"the update is not finite (loss {loss:.4g})"
        return FloatingPointError(
            f"{what} at step {step} of training (learning rate {lr:.3g}): {kept}; "
            "use a lower rate (lr_find), or look for inputs that are not finite"
        )
