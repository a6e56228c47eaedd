"""Files of today: an export and a checkpoint that later versions read, or refuse in one line."""

import json
import re
from pathlib import Path

import numpy as np

from jaxfast import load_export, tabular

from . import measure, tasks
from .learners import one

HERE = Path(__file__).parent
EXPORT = HERE / "export_v1.jaxfast"
CHECKPOINTS = HERE / "checkpoint_v1", HERE / "checkpoint_v2"
"""The same state in every format that a checkpoint has had, the newest last."""
ABOUT = HERE / "files.json"
ROWS = [{"town": "Aa", "x": 0.5, "noise": -1.0}, {"town": "Zz", "x": -2.0, "noise": None}]
"""Rows to predict: a known town, and one that training did not see beside an empty number."""


def learner():
    """The learner whose files these are: `load` needs one of the same kind."""
    learn = tabular.learner(tasks.table("rich"), layers=(4,), **one())
    learn.freeze_to(0)
    return learn


def write() -> None:
    """Train and write the files and what they predict."""
    learn = learner()
    learn.fit_one_cycle(1, 1e-2)
    learn.export(EXPORT)
    learn.save(CHECKPOINTS[-1])
    # It names the folder's place on the machine that wrote it, and only its presence is looked at.
    (CHECKPOINTS[-1] / "commit_success.txt").write_text("Checkpoint commit was successful\n")
    found = {
        "predictions": [probabilities(learn.predict(row)) for row in ROWS],
        "sums": measure.sums(learn.state.variables),
        "step": int(learn.state.step),
    }
    ABOUT.write_text(json.dumps(found, indent=1) + "\n")


def read_export() -> list[list[float]]:
    return [probabilities(answer) for answer in load_export(EXPORT).predict_batch(ROWS)]


def read_checkpoint(path: Path):
    """A learner with the checkpoint's state."""
    learn = learner()
    learn.load(path)
    return learn


def probabilities(prediction) -> list[float]:
    return np.asarray(prediction.probabilities, np.float64).tolist()


def refusal(error: ValueError) -> bool:
    """Whether this is a refusal of the file's version: one line that names it."""
    return bool(re.search(r"\b(format|version) v?1\b", str(error))) and "\n" not in str(error)
