"""The checkpoints of a run in one folder: written in the background, the last and the best kept, resumed from."""

import contextlib
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxfast.mesh import anywhere
from jaxfast.training import writer
from jaxfast.training.checkpoint import (
    Misfit,
    absolute,
    described,
    fingerprint,
    load_state,
    plain,
    read_about,
    read_arrays,
    sealed,
    writing,
)
from jaxfast.training.history import History
from jaxfast.training.recipes import falls
from jaxfast.training.state import TrainState

TERM = "term "
"""What the names of terms begin with among the arrays of a history."""
PAUSES = (1.0, 5.0, 30.0)
"""Seconds to wait before a checkpoint that could not be written is tried again: a full disk may be cleared."""
_UNFINISHED = "orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run in `folder` (a path, or a URL such as gs://bucket/run), named by their step.

    One is written every `every` steps, at the end of every epoch, and before the process ends on SIGTERM or a
    preemption notice; atomically, while training continues. The last `keep_last` stay, and with `keep_best` (a metric
    of validation, such as "accuracy") the best epoch's too. A fit that finds its own checkpoint in the folder resumes
    from it, in the middle of an epoch if need be, to the same numbers. One process (or job) writes into a folder at a
    time. Raises ValueError if `every` or `keep_last` is below 1.
    """

    def __init__(self, folder: str | Path, *, every: int = 1000, keep_last: int = 2, keep_best: str | None = None):
        if every < 1 or keep_last < 1:
            raise ValueError(f"every={every} and keep_last={keep_last} must be at least 1")
        self.folder, self.every, self.keep_last, self.keep_best = absolute(folder), every, keep_last, keep_best
        self.passed_over = False  # whether a fit was passed over because a later one has a checkpoint
        self._writer: writer.Writer | None = None
        self._pending: tuple[int, Any] | None = None  # what is being written
        self._scores: dict[int, float | None] = {}

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, rising."""
        with contextlib.suppress(OSError):
            return sorted(int(child.name) for child in self._path.iterdir() if child.name.isdecimal())
        return []

    @property
    def best(self) -> str | None:
        """The path of the best epoch's checkpoint, for `Learner.load`; None before there is one."""
        step = self._best_step()
        return None if step is None else self.path(step)

    def path(self, step: int) -> str:
        return f"{self.folder}/{step}"

    def next_after(self, step: int) -> int:
        """The next step at which one is due."""
        return (step // self.every + 1) * self.every

    def claim(self) -> None:
        """Become the one that writes into the folder. Raises ValueError, naming the holder, if another process does."""
        if self._writer is None:
            self._writer = writer.claim(self.folder)
            if jax.process_index() == 0:
                for child in self._path.iterdir() if self._path.exists() else ():
                    if _UNFINISHED in child.name:  # of a process that was killed
                        child.rmtree()

    def save(self, state: TrainState, history: History, about: dict, metrics: dict[str, float] | None = None) -> None:
        """Write `state`, `history` and the JSON-able `about` in the background; `metrics` at the end of an epoch.

        If this one or the one before cannot be written, it is tried again after `PAUSES`, in the foreground. Raises
        OSError if that fails too.
        """
        self.claim()
        tree, step = plain(state), int(state.step)
        steps = {"losses": history.losses, "lrs": history.lrs, "momentums": history.momentums}
        terms = {f"{TERM}{name}": values for name, values in history.terms.items()}
        arrays = {name: np.array(values) for name, values in (steps | terms).items()}
        scores = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        # a copy: it is written in the background, and training adds to the history meanwhile
        records = {"epochs": [dict(epoch) for epoch in history.epochs], "history": fingerprint(arrays)}
        metadata = sealed(described(tree) | about | records | {"metrics": scores})
        failed = self._settled()
        if failed is None:
            failed = self._begin(step, tree, arrays, metadata)
        for pause in PAUSES:
            if failed is None:
                break
            warnings.warn(f"{failed}; trying again in {pause:g} s", RuntimeWarning, stacklevel=2)
            time.sleep(pause)
            failed = self._begin(step, tree, arrays, metadata) or self._settled()
        if failed is not None:
            raise failed
        self._scores[step] = None if scores is None else scores.get(self.keep_best)

    def _begin(self, step: int, tree: dict, arrays: dict, metadata: dict) -> OSError | None:
        """Begin to write; return what prevented it."""
        from orbax.checkpoint import v1 as ocp

        path = self.path(step)
        try:
            with writing(path):
                # overwrite: a damaged one that was passed over may be there
                items = {"state": tree, "history": arrays}
                response = ocp.save_checkpointables_async(path, items, overwrite=True, custom_metadata=metadata)
        except OSError as error:
            return error
        self._pending = step, response
        return None

    def _settled(self) -> OSError | None:
        """Wait for what is being written, and remove what is not kept; return what prevented it, in any process."""
        if self._pending is None:
            return None
        (step, response), self._pending, failed = self._pending, None, None
        try:
            with writing(self.path(step)):
                response.result()
        except OSError as error:
            failed = error
        if anywhere(failed is not None) and failed is None:
            failed = OSError(f"another process could not write the checkpoint {self.path(step)}")
        if failed is None and jax.process_index() == 0:
            kept = {*self.steps[-self.keep_last :], self._best_step()}
            for old in self.steps:
                if old not in kept:
                    (self._path / str(old)).rmtree()
        return failed

    def about(self) -> dict | None:
        """What was saved beside the newest state that is readable; None where there is none."""
        for step in reversed(self.steps):
            try:
                return read_about(self.path(step))
            except ValueError as error:
                _fall_back(error)
        return None

    def restore(self, like: TrainState, *, after: int = -1) -> tuple[TrainState, History, dict] | None:
        """(state, history, about) of the newest checkpoint after step `after` whose bits are those that were saved;
        None where there is none. A damaged one is passed over with a warning. Raises `Misfit` (a ValueError) for a
        state of another structure than `like`."""
        from orbax.checkpoint import v1 as ocp

        for step in reversed([step for step in self.steps if step > after]):
            path = self.path(step)
            try:
                about = read_about(path)
                state = load_state(path, like)
                read = lambda path=path: ocp.load_checkpointables(path, {"history": None})["history"]
                arrays = read_arrays(path, read, about["history"])
            except Misfit:
                raise
            except ValueError as error:
                _fall_back(error)
                continue
            terms = {name.removeprefix(TERM): x.tolist() for name, x in arrays.items() if name.startswith(TERM)}
            steps = arrays["losses"].tolist(), list(arrays["lrs"]), arrays["momentums"].tolist()
            return state, History(about["epochs"], *steps, terms), about
        return None

    def wait(self) -> None:
        """Until what is being written is on disk. Raises OSError if it could not be written."""
        failed = self._settled()
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Wait, and let another process write into the folder."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.release()
                self._writer = None

    @property
    def _path(self):
        from etils import epath

        return epath.Path(self.folder)

    def _best_step(self) -> int | None:
        if self.keep_best is None:
            return None
        for step in self.steps:
            if step not in self._scores:
                with contextlib.suppress(ValueError):
                    self._scores[step] = (read_about(self.path(step))["metrics"] or {}).get(self.keep_best)
        sign = -1 if falls(self.keep_best) else 1
        scored = [(sign * score, step) for step in self.steps if (score := self._scores.get(step)) is not None]
        return max(scored)[1] if scored else None


def _fall_back(error: ValueError) -> None:
    if jax.process_index() == 0:
        warnings.warn(f"{error}; going back to the checkpoint before it", RuntimeWarning, stacklevel=3)
