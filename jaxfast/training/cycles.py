"""The tables of a fit, pure functions: a row of rates, momentum and decay for each step, from schedules.

Training programs read their hyper-parameters from such a table, so that every schedule shares the compiled step.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
import optax

from jaxfast import schedules

Rows = dict[str, np.ndarray]
"""{"lr": (steps, groups), "momentum": (steps,), "weight_decay": (steps,)}, fp32."""

BLOCK = 4096
"""Steps that a schedule is evaluated for at once, so that a longer fit compiles nothing again."""


def hyper_rows(
    steps: int,
    lr: Sequence[optax.ScalarOrSchedule],
    momentum: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
) -> Rows:
    """Schedules or constants as a table of one row per step, fp32: "lr" (steps, groups), "momentum" and
    "weight_decay" (steps,)."""
    columns = [_column(value, steps) for value in (*lr, momentum, weight_decay)]
    return {"lr": np.stack(columns[:-2], 1), "momentum": columns[-2], "weight_decay": columns[-1]}


def one_cycle_table(
    steps: int,
    rates: Sequence[float],
    weight_decay: float,
    *,
    moms: Sequence[float] = (0.95, 0.85, 0.95),
    pct_start: float = 0.25,
    div: float = 25.0,
    div_final: float = 1e5,
) -> Rows:
    """One cycle over `steps` steps (`schedules.one_cycle` and its momentum); `rates` are the groups' highest ones."""
    cycle = functools.partial(schedules.one_cycle, steps, pct_start=pct_start, div=div, div_final=div_final)
    momentum = schedules.one_cycle_momentum(steps, moms, pct_start=pct_start)
    return hyper_rows(steps, [cycle(rate) for rate in rates], momentum, weight_decay)


def flat_cosine_table(
    steps: int,
    rates: Sequence[float],
    weight_decay: float,
    *,
    momentum: float = 0.95,
    div_final: float = 1e5,
    pct_start: float = 0.75,
) -> Rows:
    """Flat rates, then a cosine (`schedules.flat_cosine`), at one momentum."""
    flat = functools.partial(schedules.flat_cosine, steps, div_final=div_final, pct_start=pct_start)
    return hyper_rows(steps, [flat(rate) for rate in rates], momentum, weight_decay)


def sgdr_table(
    n_cycles: int,
    cycle_steps: int,
    rates: Sequence[float],
    weight_decay: float,
    *,
    momentum: float = 0.95,
    cycle_mult: int = 2,
) -> Rows:
    """Warm restarts (`schedules.sgdr`): cycles of cycle_steps * cycle_mult**i steps, at one momentum."""
    steps = cycle_steps * sum(cycle_mult**i for i in range(n_cycles))
    cycles = functools.partial(schedules.sgdr, n_cycles, cycle_steps, cycle_mult=cycle_mult)
    return hyper_rows(steps, [cycles(rate) for rate in rates], momentum, weight_decay)


def cut(rows: Rows, start: int, end: int) -> Rows:
    """The steps from `start` to `end`, `end` not included, of a table."""
    return {name: values[start:end] for name, values in rows.items()}


def _column(value: optax.ScalarOrSchedule, steps: int) -> np.ndarray:
    if not callable(value):
        return np.full(steps, value, np.float32)
    # The schedules of this package are pytrees of their numbers: one program for each kind of them. Others run
    # operation by operation (20 ms of a fit), which costs less than compiling each.
    evaluate = functools.partial(_values, value) if isinstance(value, jax.tree_util.Partial) else jax.vmap(value)
    blocks = [evaluate(np.arange(start, start + BLOCK)) for start in range(0, steps, BLOCK)]
    return np.concatenate([np.asarray(block) for block in blocks])[:steps].astype(np.float32)


@jax.jit
def _values(schedule: jax.tree_util.Partial, steps: jax.Array) -> jax.Array:
    return jax.vmap(schedule)(steps)
