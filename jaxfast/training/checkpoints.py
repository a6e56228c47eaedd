"""The checkpoints of a run in one folder: written in the background, the last and the best kept, gone on from."""

import warnings
from pathlib import Path

import jax
import numpy as np

from jaxfast.training.checkpoint import absolute, described, load_state, plain, read_about
from jaxfast.training.history import History
from jaxfast.training.recipes import falls
from jaxfast.training.state import TrainState

TERM = "term "
"""What the names of terms begin with among the arrays of a history."""


class Checkpoints:
    """The checkpoints of one run in `folder` (a path, or a URL such as gs://bucket/run), named by their step.

    One is written every `every` steps, at the end of every epoch, and before the process goes on SIGTERM or a
    preemption notice; atomically, while training goes on. The last `keep_last` stay, and with `keep_best` (a metric of
    validation, such as "accuracy") the best epoch's too. A fit that finds its own checkpoint in the folder goes on
    from it, in the middle of an epoch if need be, to the same numbers. ValueError for `every` or `keep_last` below 1.
    """

    def __init__(self, folder: str | Path, *, every: int = 1000, keep_last: int = 2, keep_best: str | None = None):
        from orbax.checkpoint import v1 as ocp

        if every < 1 or keep_last < 1:
            raise ValueError(f"every={every} and keep_last={keep_last} must be at least 1")
        self.folder, self.every, self.keep_best = absolute(folder), every, keep_best
        self.passed_over = False  # whether a fit was passed over because a later one has a checkpoint
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep_last)]
        if keep_best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[keep_best],
                    reverse=falls(keep_best),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._orbax = ocp.training.Checkpointer(
            self.folder, preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
        )

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, rising."""
        return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    @property
    def best(self) -> str | None:
        """The path of the best epoch's checkpoint, for `Learner.load`; None before there is one."""
        scored = [c for c in self._orbax.checkpoints if c.metrics and self.keep_best in c.metrics]
        if not scored:
            return None
        sign = -1 if falls(self.keep_best) else 1
        return self.path(max(scored, key=lambda c: sign * c.metrics[self.keep_best]).step)

    def path(self, step: int) -> str:
        return f"{self.folder}/{step}"

    def next_after(self, step: int) -> int:
        """The next step at which one is due."""
        return (step // self.every + 1) * self.every

    def save(self, state: TrainState, history: History, about: dict, metrics: dict[str, float] | None = None) -> None:
        """Write `state`, `history` and the JSON-able `about` in the background; `metrics` at the end of an epoch."""
        tree, step = plain(state), int(state.step)
        steps = {"losses": history.losses, "lrs": history.lrs, "momentums": history.momentums}
        terms = {f"{TERM}{name}": values for name, values in history.terms.items()}
        self._orbax.save_checkpointables_async(
            step,
            {"state": tree, "history": {name: np.array(values) for name, values in (steps | terms).items()}},
            force=True,
            overwrite=step in self.steps,
            metrics=None if metrics is None else {name: float(value) for name, value in metrics.items()},
            # a copy: it is written in the background, and training adds to the history meanwhile
            custom_metadata=described(tree) | about | {"epochs": [dict(epoch) for epoch in history.epochs]},
        )

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
        None where there is none. A damaged one is passed over with a warning. ValueError for a state of another
        structure than `like`."""
        from orbax.checkpoint import v1 as ocp

        for step in reversed([step for step in self.steps if step > after]):
            path = self.path(step)
            try:
                about = read_about(path)
                state = load_state(path, like)
                arrays = ocp.load_checkpointables(path, {"history": None})["history"]
            except ValueError as error:
                if "does not fit" in str(error):
                    raise
                _fall_back(error)
                continue
            terms = {name.removeprefix(TERM): x.tolist() for name, x in arrays.items() if name.startswith(TERM)}
            steps = arrays["losses"].tolist(), list(arrays["lrs"]), arrays["momentums"].tolist()
            history = History(about["epochs"], *steps, terms)
            return state, history, about
        return None

    def wait(self) -> None:
        """Until what is being written is on disk."""
        self._orbax.wait()

    def close(self) -> None:
        self._orbax.close()


def _fall_back(error: ValueError) -> None:
    if jax.process_index() == 0:
        warnings.warn(f"{error}; going back to the checkpoint before it", RuntimeWarning, stacklevel=3)
