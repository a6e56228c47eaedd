"""Many steps in one dispatch: the program that every fit and every learning-rate search shares, and what drives it."""

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxfast.data.loader import Resident, Streamed
from jaxfast.mesh import agreed, constrain_rows, place, replicated, state_sharding
from jaxfast.training.cycles import Rows
from jaxfast.training.state import TrainState, copy_state
from jaxfast.training.step import Step

CAPACITY = 4096
"""Steps that one dispatch can hold; how many it does hold is a traced number, about a second of work."""


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


class Dispatched(NamedTuple):
    """A dispatch whose results have not been fetched: its first step, and what the program gave."""

    first: int
    scalars: dict[str, Array]
    ran: Array
    halted: Array

    def fetch(self, state: TrainState) -> RunProgress:
        """Wait for the results. `state`: the newest one."""
        terms = {name: np.asarray(x)[: int(self.ran)] for name, x in self.scalars.items()}
        losses = terms.pop("loss")
        return RunProgress(state, self.first, losses, terms, bool(self.halted))


@dataclasses.dataclass
class Publication:
    """Where a run leaves each new state as soon as it is dispatched, for whoever must not lose it.

    The first dispatch of each form of data may compile for minutes; it is given a copy of the state, so that the one
    that was published stays whole. Others take the published state's memory, within `guard`.

    Args:
        publish: called with the new state.
        guard: a context that holds interrupts back; it may be entered again.
        waiting: dispatches that were not yet fetched, or not yet taken from the iterator.
        error: what this process of several could not read.
        compiled: forms of data that have been dispatched.
    """

    publish: Callable[[TrainState], None]
    guard: AbstractContextManager = dataclasses.field(default_factory=nullcontext)
    waiting: list[Dispatched] = dataclasses.field(default_factory=list)
    compiled: set = dataclasses.field(default_factory=set)
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Remember what could not be read, and give notice to all processes of the job (`Preemption`), which stop at
        one step. Until then this one goes along with rows that it has, or the others would wait for ever."""
        self.error = error
        os.kill(os.getpid(), signal.SIGTERM)

    def dispatch(self, program: Callable, state: TrainState, first: int, data: Any) -> TrainState:
        """Publish and return the new state of `program(state)`, which reads `data`."""
        form = tuple((x.shape, x.dtype) for x in jax.tree.leaves(data))
        if form in self.compiled:
            with self.guard:
                return self._take(program(state), first)
        results = program(copy_state(state))
        with self.guard:
            self.compiled.add(form)
            return self._take(results, first)

    def _take(self, results: tuple, first: int) -> TrainState:
        state, *rest = results
        self.waiting.append(Dispatched(first, *rest))
        self.publish(state)
        return state


def run(
    state: TrainState,
    chunk: Callable,
    feed: Resident | Streamed,
    rows: Rows,
    pace: Pace | None = None,
    stop: Callable[[], bool] = lambda: False,
    publication: Publication | None = None,
) -> Iterator[RunProgress]:
    """Train for one step per row of `rows`, yielding after each dispatch.

    A piece is dispatched before the losses of the one before are fetched, so that the device never waits for the host;
    how many steps it holds is `pace`'s to say, and it does not cross an epoch of the data. `state` is donated to the
    first dispatch, unless a `publication` keeps it until a new one is there.
    A step whose loss or update is not finite ends the run: `halted`, with the state before that step. `stop` is asked
    before each dispatch; once it says so, the run ends with what was dispatched. In a job of several processes, data
    that one of them cannot read are its `publication.error` in the end, and the steps since then are worth nothing.
    """
    pace = pace or Pace()
    total, done = len(rows["momentum"]), 0
    per_epoch = feed.examples // feed.batch_size
    step, epoch, order, piece = int(state.step), None, None, None
    halted = place(np.bool_(False), state.step.sharding)
    waiting = [] if publication is None else publication.waiting
    clock = time.perf_counter()
    while done < total or waiting:
        if done < total and stop():
            total = done
        if done < total:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = feed.order(state.key, epoch)
            try:
                if publication is None or publication.error is None:
                    piece = feed.piece(order, step % per_epoch, min(pace.steps, total - done))
            except Exception as error:
                if piece is None or publication is None or jax.process_count() == 1:
                    raise
                publication.fail(error)
            table = {name: _pad(values[done : done + piece.n]) for name, values in rows.items()}
            rest = piece.data, piece.order, np.int32(piece.start), np.int32(piece.n), table, halted
            if publication is None:
                state, *results = chunk(state, *rest)
                waiting.append(Dispatched(done, *results))
            else:
                state = publication.dispatch(lambda state, rest=rest: chunk(state, *rest), state, done, piece.data)
            halted = waiting[-1].halted
            done, step = done + piece.n, step + piece.n
        if waiting and (len(waiting) > 1 or done == total):
            progress = waiting[0].fetch(state)
            now = time.perf_counter()
            pace.learn(len(progress.losses), now - clock)
            clock = now
            yield progress
            waiting.pop(0)  # only now has it been taken
            if progress.halted:
                return


def _pad(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.zeros((CAPACITY - len(values), *values.shape[1:]), values.dtype)])
