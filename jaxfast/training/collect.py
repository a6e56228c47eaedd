"""Evaluation that brings the outputs to the host as well, for metrics and intervals that need all of them at once."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from jaxfast.data.loader import Padded
from jaxfast.mesh import constrain_rows, to_host


def make_collection(forward: Callable, sums_of: Callable, batch_size: int, mesh: Mesh) -> Callable:
    """The compiled function `collection(variables, data) -> (sums, outputs, carry)` for padded `data` of one or many
    batches.

    `forward(variables, batch) -> (outputs, carry)` is `make_carried`'s; `sums_of(outputs, batch)` gives the sums of one
    batch; `outputs` has all rows.
    """

    @jax.jit
    def collection(variables, data):
        def one(carry, batch):
            batch = constrain_rows(batch, mesh)
            outputs, carry = forward(variables | carry, batch)
            return carry, (sums_of(outputs, batch), outputs)

        rows = len(data["mask"])
        carry = {name: variables[name] for name in ("carry",) if name in variables}
        if rows == batch_size:
            carry, (sums, outputs) = one(carry, data)
            return sums, outputs, carry
        batches = jax.tree.map(lambda x: x.reshape(rows // batch_size, batch_size, *x.shape[1:]), data)
        carry, (sums, outputs) = jax.lax.scan(one, carry, batches)
        outputs = outputs.reshape(rows, *outputs.shape[2:])
        return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums), outputs, carry

    return collection


def collect(
    collection: Callable, variables: dict, data: Padded | Iterable[dict]
) -> tuple[dict, np.ndarray, np.ndarray]:
    """(sums, outputs, targets) of a whole data set on the host, padded rows left out of all three."""
    batches = [data.data] if isinstance(data, Padded) else data
    sums, parts = None, []
    for batch_sums, outputs, batch in _one_ahead(_collected(collection, variables, batches)):
        sums = batch_sums if sums is None else jax.tree.map(jax.numpy.add, sums, batch_sums)
        outputs, target, mask = to_host((outputs, batch["target"], batch["mask"]))
        parts.append((outputs[mask], target[mask]))
    outputs, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return jax.device_get(sums), outputs, targets


def _collected(collection: Callable, variables: dict, batches: Iterable[dict]) -> Iterator:
    for batch in batches:
        sums, outputs, carry = collection(variables, batch)
        variables = variables | carry
        yield sums, outputs, batch


def _one_ahead(results: Iterable) -> Iterator:
    """`results` in order, the next one dispatched before one is handed out to be fetched."""
    waiting = None
    for result in results:
        if waiting is not None:
            yield waiting
        waiting = result
    if waiting is not None:
        yield waiting
