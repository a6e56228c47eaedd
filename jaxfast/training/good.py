"""The state that a fit goes back to when a step is not finite: that of its start, or of its last sane epoch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfast.mesh import agreed
from jaxfast.training.history import History
from jaxfast.training.state import TrainState, copy_state

WORSE = 10.0
"""The largest validation loss of a good epoch, as a multiple of the best epoch's."""
SPARE = 0.25
"""The share of a device's free memory that a second state may take; a larger state is kept on the host."""


class GoodState:
    """Keeps one state of a fit, and how long the history was then.

    On the device where a second state fits there (`SPARE`), else on the host, where each process keeps the shards of
    its own devices.
    """

    def __init__(self, state: TrainState, history: History):
        self.best, self.on_device = math.inf, _fits(state)
        self._hold(state, history)

    def _hold(self, state: TrainState, history: History) -> None:
        self._state = state if self.on_device else _Hosted.of(state)
        self.length = len(history), len(history.losses)

    def end_epoch(self, state: TrainState, history: History, loss: float) -> None:
        """Keep `state` if the validation loss is finite, and at most `WORSE` times the best of this fit."""
        # Of a loss below zero, ten times the best would be better than the best: the distance counts.
        if not math.isfinite(loss) or loss > self.best + (WORSE - 1) * abs(self.best):
            return
        self.best = min(self.best, loss)
        self._state = None  # before the next one takes memory
        self._hold(copy_state(state) if self.on_device else state, history)

    def restored(self, history: History) -> tuple[TrainState, History]:
        """The kept state, and `history` up to it. The state is handed over, not copied."""
        state = self._state if self.on_device else self._state.placed()
        return state, history.until(*self.length)


class _Hosted(NamedTuple):
    """A state in the memory of the host."""

    arrays: Any

    @classmethod
    def of(cls, state: TrainState) -> "_Hosted":
        begun = jax.tree.map(_Shards.begin, state.replace(key=jax.random.key_data(state.key)))
        return cls(_each(_Shards.fetched, begun))  # all copies are on their way

    def placed(self) -> TrainState:
        state = _each(_Shards.placed, self.arrays)
        return state.replace(key=jax.random.wrap_key_data(state.key))


class _Shards(NamedTuple):
    """One array: its shape, its layout, and {place: values} of this process, replicas once."""

    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding
    values: dict[str, Any]

    @classmethod
    def begin(cls, x: jax.Array) -> "_Shards":
        shards = {str(shard.index): shard.data for shard in x.addressable_shards}
        for data in shards.values():
            data.copy_to_host_async()
        return cls(x.shape, x.sharding, shards)

    def fetched(self) -> "_Shards":
        return self._replace(values={place: np.array(data) for place, data in self.values.items()})

    def placed(self) -> jax.Array:
        return jax.make_array_from_callback(self.shape, self.sharding, lambda index: self.values[str(index)])


def _each(function: Callable, tree: Any) -> Any:
    return jax.tree.map(function, tree, is_leaf=lambda x: isinstance(x, _Shards))


def _fits(state: TrainState) -> bool:
    """Whether a second state fits on the devices; all processes decide alike."""
    device = jax.tree.leaves(state)[0].addressable_shards[0].device
    keyless = state.replace(key=jax.random.key_data(state.key))
    shards = [shard for x in jax.tree.leaves(keyless) for shard in x.addressable_shards if shard.device == device]
    fits = sum(shard.data.nbytes for shard in shards) <= spare_memory(device.memory_stats() or {})
    return bool(agreed(float(fits))) if jax.process_count() > 1 else fits


def spare_memory(stats: Mapping[str, int]) -> float:
    """The bytes of a device that a second state may take, by the device's `memory_stats`: `SPARE` of what is free.

    >>> spare_memory({"bytes_limit": 1000, "bytes_in_use": 200})
    200.0
    """
    if "bytes_limit" not in stats:  # a CPU, whose memory is the host's
        return math.inf
    return SPARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
