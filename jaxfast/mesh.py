"""One data mesh over all devices: state replicated, batches split by rows. The same code on 1 device and on a pod."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with one axis, "data", over `devices` (default: all of them).

    Built by `Mesh` and not by `jax.make_mesh`, whose axes are of the Explicit kind.
    """
    return Mesh(np.array(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def constrain_rows(batch, mesh: Mesh):
    """Inside a compiled program: split each array of `batch` by rows, so that each device computes only its own.

    Without it the compiler is free to compute the whole batch on every device, silently.
    """
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, by_rows(mesh)), batch)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """ValueError when the global batch does not split evenly over the devices."""
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size {batch_size} does not split over {mesh.size} devices: use a multiple of {mesh.size}"
        )
