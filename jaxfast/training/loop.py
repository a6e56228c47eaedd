"""Many steps in one dispatch: the program that every fit and every learning-rate search shares, and what drives it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxfast.data.loader import Padded, Resident, Streamed
from jaxfast.mesh import agreed, constrain_rows, place, replicated, state_sharding
from jaxfast.training.state import TrainState
from jaxfast.training.step import Step

CAPACITY = 4096
"""Steps that one dispatch can hold; how many it does hold is a traced number, about a second of work."""

Rows = dict[str, np.ndarray]


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


def _column(value: optax.ScalarOrSchedule, steps: int) -> np.ndarray:
    if not callable(value):
        return np.full(steps, value, np.float32)
    # The schedules of this package are pytrees of their numbers: one program for each kind of them. Others run
    # operation by operation (20 ms of a fit), which costs less than compiling each.
    evaluate = functools.partial(_values, value) if isinstance(value, jax.tree_util.Partial) else jax.vmap(value)
    # In blocks of one shape, so that a longer fit compiles nothing again.
    blocks = [evaluate(np.arange(start, start + CAPACITY)) for start in range(0, steps, CAPACITY)]
    return np.concatenate([np.asarray(block) for block in blocks])[:steps].astype(np.float32)


@jax.jit
def _values(schedule: jax.tree_util.Partial, steps: jax.Array) -> jax.Array:
    return jax.vmap(schedule)(steps)


def make_chunk(
    step: Step, batch_size: int, mesh: Mesh, *, resident: bool, shard: bool = False, capacity: int = CAPACITY
) -> Callable:
    """The compiled function `chunk(state, data, order, start, n, rows, halted, constants=())`, which gives (state,
    scalars, done, halted).

    Runs the `n` <= `capacity` batches `order[(start + i) * batch_size :][:batch_size]` of `data` with the
    hyper-parameters `rows[i]`; with `resident=False`, `data` is itself the one batch. `state` is donated. `scalars` has
    an array (capacity,) in fp32 for "loss" and for every other number that the step reports, of which the first `done`
    are of steps that ran. A step that is not finite ends the chunk; with `halted` true at the start no step runs, so
    that chunks can be dispatched before the losses of the one before are looked at. `constants`: passed to the step.
    `shard`: the state is split over the devices (`mesh.state_sharding`).
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state, data, order, start, n, rows, halted, constants=()):
        # traced once, for the names of its scalars and for the loop; inlined, so that the program does not change
        @functools.partial(jax.jit, inline=True)
        def one(i, state, data, order, start, rows, bound):
            if resident:
                index = jax.lax.dynamic_slice(order, ((start + i) * batch_size,), (batch_size,))
                batch = jax.tree.map(lambda x: x[index], data)
            else:
                batch = data
            return step(state, constrain_rows(batch, mesh), jax.tree.map(lambda row: row[i], rows), *bound)

        bound = (constants,) if jax.tree.leaves(constants) else ()
        rest = data, order, start, rows, bound

        def body(carry):
            i, state, buffers, _ = carry
            state, scalars = one(i, state, *rest)
            halted = ~scalars.pop("finite")
            kept = {name: buffers[name].at[i].set(x.astype(jnp.float32)) for name, x in scalars.items()}
            return i + 1, state, kept, halted

        names = sorted(jax.eval_shape(one, jnp.int32(0), state, *rest)[1].keys() - {"finite"})
        buffers = {name: jnp.zeros((capacity,), jnp.float32) for name in names}
        carry = jnp.int32(0), state, buffers, halted
        done, state, buffers, halted = jax.lax.while_loop(lambda c: (c[0] < n) & ~c[3], body, carry)
        # The sharding of the results is that of the arguments, or the second call would compile again.
        results = state, buffers, done, halted
        return jax.lax.with_sharding_constraint(
            results, (state_sharding(state, mesh, shard=shard), *[replicated(mesh)] * 3)
        )

    return chunk


def make_evaluation(evaluate: Callable, batch_size: int, mesh: Mesh, *, resident: bool) -> Callable:
    """The compiled function `evaluation(variables, data, batches, constants=()) -> (sums, carry)` over all batches of
    padded `data`; `constants` are those of the loss.

    What a recurrent module carries goes from batch to batch, and on to the next call by `variables | carry`.
    """

    @jax.jit
    def evaluation(variables, data, batches, constants=()):
        def one(i, carry):
            rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * batch_size, batch_size), data)
            return evaluate(variables | carry, constrain_rows(rows if resident else data, mesh), constants)

        def add(i, total):
            sums, carry = total
            new, carry = one(i, carry)
            return jax.tree.map(jnp.add, sums, new), carry

        sums, carry = jax.eval_shape(one, jax.ShapeDtypeStruct((), jnp.int32), {})
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
        return jax.lax.fori_loop(0, batches, add, (zeros, {name: variables[name] for name in carry}))

    return evaluation


class RunProgress(NamedTuple):
    """Where a run is: the newest state, and what the steps from `first` on have reported.

    `losses` (steps,); `terms`: the other scalars by name, (steps,) each.
    """

    state: TrainState
    first: int
    losses: np.ndarray
    terms: dict[str, np.ndarray]
    halted: bool


@dataclasses.dataclass
class Pace:
    """How many steps make about `seconds` of work, learnt from the dispatches before; 1 at first.

    The processes of one job must dispatch alike: they take process 0's measurements, and only the first `rounds`.
    """

    seconds: float = 1.0
    steps: int = 1
    rounds: int = 8

    def learn(self, steps: int, seconds: float) -> None:
        if jax.process_count() > 1:
            if not self.rounds:
                return
            self.rounds -= 1
            seconds = agreed(seconds)
        wanted = int(steps * self.seconds / max(seconds, 1e-4))
        self.steps = min(max(wanted, 1), 4 * self.steps, CAPACITY)


def run(
    state: TrainState,
    chunk: Callable,
    feed: Resident | Streamed,
    rows: Rows,
    pace: Pace | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[RunProgress]:
    """Train for one step per row of `rows`, yielding after each dispatch; `state` is donated to the first one.

    A piece is dispatched before the losses of the one before are fetched, so that the device never waits for the host;
    how many steps it holds is `pace`'s to say, and it does not cross an epoch of the data.
    A step whose loss or update is not finite ends the run: `halted`, with the state before that step. `stop` is asked
    before each dispatch; once it says so, the run ends with what was dispatched.
    """
    pace = pace or Pace()
    total, done = len(rows["momentum"]), 0
    per_epoch = feed.examples // feed.batch_size
    step, epoch, order = int(state.step), None, None
    halted, waiting = place(np.bool_(False), state.step.sharding), []
    clock = time.perf_counter()
    while done < total or waiting:
        if done < total and stop():
            total = done
        if done < total:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = feed.order(state.key, epoch)
            piece = feed.piece(order, step % per_epoch, min(pace.steps, total - done))
            table = {name: _pad(values[done : done + piece.n]) for name, values in rows.items()}
            state, scalars, ran, halted = chunk(
                state, piece.data, piece.order, np.int32(piece.start), np.int32(piece.n), table, halted
            )
            waiting.append((done, scalars, ran, halted))
            done, step = done + piece.n, step + piece.n
        if waiting and (len(waiting) > 1 or done == total):
            first, scalars, ran, stopped = waiting.pop(0)
            terms, stopped = {name: np.asarray(x)[: int(ran)] for name, x in scalars.items()}, bool(stopped)
            losses = terms.pop("loss")
            now = time.perf_counter()
            pace.learn(len(losses), now - clock)
            clock = now
            yield RunProgress(state, first, losses, terms, stopped)
            if stopped:
                return


def _pad(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.zeros((CAPACITY - len(values), *values.shape[1:]), values.dtype)])


def evaluate_all(evaluation: Callable, variables: dict, data: Padded | Iterator, constants: Any = ()) -> dict:
    """The sums of a whole validation set, on the host."""
    if isinstance(data, Padded):
        return jax.device_get(evaluation(variables, data.data, np.int32(data.batches), constants)[0])
    sums = None
    for batch in data:
        batch_sums, carry = evaluation(variables, batch, np.int32(1), constants)
        variables = variables | carry
        sums = batch_sums if sums is None else jax.tree.map(jnp.add, sums, batch_sums)
    return jax.device_get(sums)
