"""Several settings of one model trained side by side in one program, for accelerators that one model leaves idle."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxfast import optim, training
from jaxfast.data.loader import Resident
from jaxfast.learner import Learner
from jaxfast.messages import check_whole, first
from jaxfast.sweep.space import Setting

KNOWN = ("lr", "weight_decay", "pct_start", "div", "div_final")
"""What may differ between settings that share a program: numbers that a training step takes as arguments."""


def run_together(learn: Learner, given: Sequence[Setting], epochs: int) -> list[dict]:
    """A row for each setting, as `sweep.run` gives: what `fit_one_cycle(epochs, ...)` makes of the learner's state.

    A setting holds "lr" and perhaps "weight_decay", "pct_start", "div", "div_final"; all start from the state of
    `learn`, which stays as it is, and see the same batches. One compiled program trains all settings at once
    (`jax.vmap` over their states): on an accelerator they share its time, on CPU runs in turn are faster. A setting
    that diverges has an "error". ValueError for another hyper-parameter, and for data that do not stay on the device.
    """
    given = [dict(setting) for setting in given]
    if not given:
        raise ValueError("there are no settings to run: give at least one")
    strange = sorted({name for setting in given for name in setting} - set(KNOWN))
    if strange:
        raise ValueError(f"{strange[0]!r} changes the program: settings that run together may differ in {first(KNOWN)}")
    if any("lr" not in setting for setting in given):
        raise ValueError("each setting needs a learning rate: {'lr': 1e-3, ...}")
    check_whole("epochs", epochs)
    state, feed = learn.state, learn.task.source
    if not isinstance(feed, Resident):
        raise ValueError("settings run together on data that stay on the device: use sweep.run for data that stream")
    steps = feed.examples // feed.batch_size
    total, first_step = epochs * steps, int(state.step)
    tables = [_hyper_rows(learn, setting, total) for setting in given]
    rows = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    states = jax.tree.map(lambda x: jnp.stack([x] * len(given)), state)
    bound, halted, done = learn.task.training_program(learn.trainable, learn.programs), jnp.zeros(len(given), bool), 0
    chunk, constants = bound.chunk.func, learn.task.constants
    while done < total:
        epoch, within = divmod(first_step + done, steps)
        if not done or not within:
            order = feed.place(training.epoch_order(state.key, epoch, feed.examples))
        piece = feed.piece(order, within, min(training.CAPACITY, total - done))
        part = {name: _padded(values[:, done : done + piece.n]) for name, values in rows.items()}
        counts = np.int32(piece.start), np.int32(piece.n)
        states, _, _, halted = _together(chunk, states, piece.data, piece.order, *counts, part, halted, constants)
        done += piece.n
    stopped = np.asarray(halted)
    return [
        _row(learn, setting, jax.tree.map(lambda x, i=i: x[i], states), stopped[i]) for i, setting in enumerate(given)
    ]


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _together(chunk, states, data, order, start, n, rows, halted, constants):
    together = jax.vmap(chunk, in_axes=(0, None, None, None, None, 0, 0, None))
    return together(states, data, order, start, n, rows, halted, constants)


def _hyper_rows(learn: Learner, setting: Setting, total: int) -> training.Rows:
    shape = {name: setting[name] for name in ("pct_start", "div", "div_final") if name in setting}
    rates = optim.discriminative(setting["lr"], learn.trainable.n_groups)
    decay = setting.get("weight_decay", learn.weight_decay)
    return training.one_cycle_table(total, rates, decay, moms=learn.moms, **shape)


def _padded(values: np.ndarray) -> np.ndarray:
    width = [(0, 0)] * values.ndim
    width[1] = (0, training.CAPACITY - values.shape[1])
    return np.pad(values, width)


def _row(learn: Learner, setting: Setting, state: training.TrainState, stopped: bool) -> dict:
    if stopped:
        return {**setting, "error": "the loss, a gradient or the rate is not finite"}
    results = learn.evaluator.validate(state.variables, learn.task.held_out)
    return {**setting, "valid_loss": results.pop("loss"), **results}
