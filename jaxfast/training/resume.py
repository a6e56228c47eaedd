"""Resuming from a checkpoint: which of a script's fits it belongs to, and where in that fit it was written."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxfast.training.checkpoint import Misfit
from jaxfast.training.checkpoints import Checkpoints
from jaxfast.training.cycles import Rows
from jaxfast.training.history import History
from jaxfast.training.identity import check_same
from jaxfast.training.state import TrainState

ANEW = "delete the folder or give another one to begin anew"


class Resumed(NamedTuple):
    """Where a fit begins: its state and history, and how many of its steps and of its epochs are over."""

    state: TrainState
    history: History
    done: int = 0
    ended: int = 0


def resume(
    checkpoints: Checkpoints, state: TrainState, history: History, rows: Rows, about: Mapping[str, Any]
) -> Resumed:
    """Where a fit with the hyper-parameters `rows`, from `state` on, begins, by the newest checkpoint.

    Fits are told apart by their steps. One whose last step lies before the newest checkpoint was over when that was
    written: all its steps count as done, and the parameters come when the checkpoint's own fit begins.
    Raises ValueError, naming the difference, if the checkpoint is of a fit with another number of steps or another
    schedule, of other data (`about["data"]`, of `identity.describe`), or of a state of another structure.
    """
    checkpoints.claim()
    first, total = int(state.step), len(rows["momentum"])
    newest = max(checkpoints.steps, default=0)
    if newest <= first:
        return Resumed(state, history)
    if newest > first + total:
        checkpoints.passed_over = True
        return Resumed(state.replace(step=state.step + total), history, total)
    found = checkpoints.restore(state, after=first)
    if found is None:
        if checkpoints.passed_over:
            raise ValueError(
                f"the checkpoints after step {first} in {checkpoints.folder} are damaged: delete them, and the same "
                "command resumes from the one before"
            )
        return Resumed(state, history)
    state, known, saved = found
    if "data" in about and "data" in saved:
        check_same(checkpoints.folder, saved["data"], about["data"], f"give the same data, or {ANEW}")
    fit = saved["fit"]
    if (fit["first"], fit["steps"]) != (first, total):
        raise Misfit(
            f"{checkpoints.folder} holds a fit of {fit['steps']} steps from step {fit['first']} on, this one has "
            f"{total} from step {first} on: give the same epochs and batch size, or another folder"
        )
    if (change := _changed(fit["schedule"], schedule(rows))) is not None:
        raise Misfit(f"{checkpoints.folder} is of a fit with another schedule: {change}; give the same, or {ANEW}")
    return Resumed(state, known, int(state.step) - first, len(known) - fit["begun"])


def schedule(rows: Rows, points: int = 17) -> dict[str, list]:
    """What a checkpoint keeps of a fit's hyper-parameters: their values at `points` steps, evenly spread, as JSON."""
    steps = np.unique(np.linspace(0, len(rows["momentum"]) - 1, points).round().astype(int))
    return {name: [np.asarray(value, float).tolist() for value in values[steps]] for name, values in rows.items()}


def _changed(old: Mapping[str, list], new: Mapping[str, list]) -> str | None:
    """The first hyper-parameter that differs, by more than the rounding of another device."""
    words = {"lr": "the learning rates", "momentum": "the momentum", "weight_decay": "the weight decay"}
    for name, values in new.items():
        was, now = np.array(old.get(name)), np.array(values)
        if was.shape != now.shape or not np.allclose(was, now, rtol=1e-3, atol=1e-12, equal_nan=True):
            peaks = f"{was.max():.4g}", f"{now.max():.4g}"
            end = f"at most {peaks[0]} then, {peaks[1]} now" if peaks[0] != peaks[1] else "of another form"
            return f"{words.get(name, name)} {'are' if name == 'lr' else 'is'} {end}"
    return None
