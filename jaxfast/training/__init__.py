"""Training as pure functions: state, step, loop, finder; a script uses these, the learner calls them."""

from jaxfast.data.loader import epoch_order
from jaxfast.training import recipes
from jaxfast.training.checkpoint import fingerprint, load_state, read_about, save_state
from jaxfast.training.checkpoints import Checkpoints
from jaxfast.training.cycles import Rows, cut, flat_cosine_table, hyper_rows, one_cycle_table, sgdr_table
from jaxfast.training.evaluate import Evaluator, Outputs, make_forward
from jaxfast.training.finder import LRFinder, lr_find
from jaxfast.training.fit import fit_epochs
from jaxfast.training.history import History, SmoothLoss, smooth
from jaxfast.training.interrupts import Interrupts
from jaxfast.training.loop import CAPACITY, Pace, Publication, RunProgress, make_chunk, run
from jaxfast.training.preemption import Preempted
from jaxfast.training.programs import Programs
from jaxfast.training.state import (
    Trainable,
    TrainState,
    copy_state,
    create_state,
    fresh_opt_state,
    key_for,
    trainable,
)
from jaxfast.training.step import make_step, supervised
from jaxfast.training.summary import Summary, summarize
from jaxfast.training.task import Task, TrainingProgram
from jaxfast.training.update import Objective, Outcome, Report, UpdateState, make_update

__all__ = [
    "CAPACITY",
    "Checkpoints",
    "Evaluator",
    "History",
    "Interrupts",
    "LRFinder",
    "Objective",
    "Outcome",
    "Outputs",
    "Pace",
    "Preempted",
    "Programs",
    "Publication",
    "Report",
    "Rows",
    "RunProgress",
    "SmoothLoss",
    "Summary",
    "Task",
    "TrainState",
    "Trainable",
    "TrainingProgram",
    "UpdateState",
    "copy_state",
    "create_state",
    "cut",
    "epoch_order",
    "fingerprint",
    "fit_epochs",
    "flat_cosine_table",
    "fresh_opt_state",
    "hyper_rows",
    "key_for",
    "load_state",
    "lr_find",
    "make_chunk",
    "make_forward",
    "make_step",
    "make_update",
    "one_cycle_table",
    "read_about",
    "recipes",
    "run",
    "save_state",
    "sgdr_table",
    "smooth",
    "summarize",
    "supervised",
    "trainable",
]
