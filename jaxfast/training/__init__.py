"""Training as pure functions: state, step, loop, finder; a script uses these, the learner calls them."""

from jaxfast.data.loader import epoch_order
from jaxfast.training import recipes
from jaxfast.training.checkpoint import fingerprint, load_state, read_about, save_state
from jaxfast.training.checkpoints import Checkpoints
from jaxfast.training.finder import LRFinder, lr_find
from jaxfast.training.fit import fit_epochs
from jaxfast.training.history import History, SmoothLoss, smooth
from jaxfast.training.loop import (
    CAPACITY,
    Pace,
    Rows,
    RunProgress,
    evaluate_all,
    hyper_rows,
    make_chunk,
    make_evaluation,
    run,
)
from jaxfast.training.preemption import Preempted
from jaxfast.training.programs import Programs
from jaxfast.training.state import Trainable, TrainState, create_state, fresh_opt_state, key_for, trainable
from jaxfast.training.step import make_carried, make_evaluate, make_forward, make_step, supervised
from jaxfast.training.summary import Summary, summarize
from jaxfast.training.update import Objective, Outcome, Report, UpdateState, make_update

__all__ = [
    "CAPACITY",
    "Checkpoints",
    "History",
    "LRFinder",
    "Objective",
    "Outcome",
    "Pace",
    "Preempted",
    "Programs",
    "Report",
    "Rows",
    "RunProgress",
    "SmoothLoss",
    "Summary",
    "TrainState",
    "Trainable",
    "UpdateState",
    "create_state",
    "epoch_order",
    "fingerprint",
    "evaluate_all",
    "fit_epochs",
    "fresh_opt_state",
    "hyper_rows",
    "key_for",
    "load_state",
    "lr_find",
    "make_carried",
    "make_chunk",
    "make_evaluate",
    "make_evaluation",
    "make_forward",
    "make_step",
    "make_update",
    "read_about",
    "recipes",
    "run",
    "save_state",
    "smooth",
    "summarize",
    "supervised",
    "trainable",
]
