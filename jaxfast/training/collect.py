"""Evaluation that brings the outputs to the host as well, for metrics and intervals that need all of them at once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxfast.data.loader import Padded
from jaxfast.mesh import constrain_rows, to_host


def make_collection(
    forward: Callable, sums_of: Callable, batch_size: int, mesh: Mesh, prepare: Callable | None = None
) -> Callable:
    """The compiled function `collection(variables, data, constants=()) -> (sums, outputs, targets, carry)` for padded
    `data` of one or many batches.

    `forward(variables, batch) -> (outputs, carry)` is `make_carried`'s; `sums_of(outputs, batch, constants)` gives the
    sums of one batch; `prepare(batch)` makes of stored rows what both take. `outputs` and `targets` have all rows.
    """

    @jax.jit
    def collection(variables, data, constants=()):
        def one(carry, batch):
            batch = constrain_rows(batch, mesh)
            batch = batch if prepare is None else prepare(batch)
            outputs, carry = forward(variables | carry, batch)
            return carry, (sums_of(outputs, batch, constants), outputs, batch["target"])

        rows = len(data["mask"])
        carry = {name: variables[name] for name in ("carry",) if name in variables}
        if rows == batch_size:
            carry, (sums, outputs, targets) = one(carry, data)
            return sums, outputs, targets, carry
        batches = jax.tree.map(lambda x: x.reshape(rows // batch_size, batch_size, *x.shape[1:]), data)
        carry, (sums, *both) = jax.lax.scan(one, carry, batches)
        outputs, targets = (x.reshape(rows, *x.shape[2:]) for x in both)
        return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums), outputs, targets, carry

    return collection


def collect(
    collection: Callable, variables: dict, data: Padded | Iterable[dict], constants: Any = ()
) -> tuple[dict, np.ndarray, np.ndarray]:
    """(sums, outputs, targets) of a whole data set on the host, padded rows left out of all three."""
    batches = [data.data] if isinstance(data, Padded) else data
    sums, parts = None, []
    for batch_sums, *rows in _one_ahead(_collected(collection, variables, batches, constants)):
        sums = batch_sums if sums is None else jax.tree.map(jax.numpy.add, sums, batch_sums)
        outputs, targets, mask = to_host(tuple(rows))
        parts.append((outputs[mask], targets[mask]))
    outputs, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return jax.device_get(sums), outputs, targets


def _collected(collection: Callable, variables: dict, batches: Iterable[dict], constants: Any) -> Iterator:
    for batch in batches:
        sums, outputs, targets, carry = collection(variables, batch, constants)
        variables = variables | carry
        yield sums, outputs, targets, batch["mask"]


def _one_ahead(results: Iterable) -> Iterator:
    """`results` in order, the next one dispatched before one is handed out to be fetched."""
    waiting = None
    for result in results:
        if waiting is not None:
            yield waiting
        waiting = result
    if waiting is not None:
        yield waiting
