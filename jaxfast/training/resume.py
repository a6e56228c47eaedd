"""Going on from a checkpoint: which of a script's fits it belongs to, and where in that fit it was written."""

from typing import NamedTuple

from jaxfast.training.checkpoints import Checkpoints
from jaxfast.training.history import History
from jaxfast.training.state import TrainState


class Resumed(NamedTuple):
    """Where a fit begins: its state and history, and how many of its steps and of its epochs are over."""

    state: TrainState
    history: History
    done: int = 0
    ended: int = 0


def resume(checkpoints: Checkpoints, state: TrainState, history: History, total: int) -> Resumed:
    """Where a fit of `total` steps from `state` on begins, by the newest checkpoint; its history included.

    Fits are told apart by their steps. One whose last step lies before the newest checkpoint was over when that was
    written: all its steps count as done, and the parameters come when the checkpoint's own fit begins. ValueError for
    a checkpoint of a fit with another number of steps, or of a state of another structure.
    """
    first = int(state.step)
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
                "command goes on from the one before"
            )
        return Resumed(state, history)
    state, known, about = found
    if about["fit"] != {"first": first, "steps": total, "begun": about["fit"]["begun"]}:
        was = about["fit"]
        raise ValueError(
            f"{checkpoints.folder} holds a fit of {was['steps']} steps from step {was['first']} on, this one has "
            f"{total} from step {first} on: give the same epochs and batch size, or another folder"
        )
    return Resumed(state, known, int(state.step) - first, len(known) - about["fit"]["begun"])
