"""One data mesh over all devices of all processes: where arrays lie. The same code on 1 device and on a pod.

Batches are split by rows. The training state is replicated, or, for models that do not fit, split by one rule (ZeRO,
Rajbhandari et al. 2020; FSDP): every large array along its longest axis that the devices divide.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHARD_FROM = 2**14
"""Arrays of fewer elements are replicated even when the state is sharded: moving them costs more than they take."""


def init_distributed(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Join the other processes of this job, before any other use of jax; returns whether there are several.

    A TPU pod, SLURM, Open MPI and Kubernetes are detected by jax. Elsewhere give all three of `coordinator`
    ("host:port" of process 0), `num_processes` and `process_id`. Called alone on one machine it does nothing.
    ValueError when only some of the three are given; RuntimeError when jax has been used already.
    """
    given = coordinator, num_processes, process_id
    if any(value is not None for value in given) and None in given:
        raise ValueError(
            f"coordinator={coordinator!r}, num_processes={num_processes}, process_id={process_id}: give all three, "
            "or none of them on a TPU pod, under SLURM, Open MPI or Kubernetes"
        )
    if jax.config.jax_platforms == "cpu" and not jax.config.jax_cpu_collectives_implementation:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(coordinator, num_processes, process_id)
        except ValueError as error:
            # What jax says where it detects no cluster and was told of none: a machine on its own.
            if None not in given or "coordinator_address" not in str(error):
                raise
        except RuntimeError as error:
            if "before any JAX calls" not in str(error):
                raise
            raise RuntimeError("jax has been used already: call init_distributed() before anything else") from None
    return jax.process_count() > 1


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


def state_sharding(tree, mesh: Mesh, *, shard: bool = False):
    """Where each array of a training state lies: everywhere; with `shard`, arrays of at least `SHARD_FROM` elements
    are split along their longest axis that the devices divide (the first of equals)."""

    def rule(x) -> NamedSharding:
        if not shard or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) or x.size < SHARD_FROM:
            return replicated(mesh)
        sizes = [size if size % mesh.size == 0 else 0 for size in x.shape]
        axis = int(np.argmax(sizes))
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")) if sizes[axis] else replicated(mesh)

    return jax.tree.map(rule, tree)


def constrain_rows(batch, mesh: Mesh):
    """Inside a compiled program: split each array of `batch` by rows, so that each device computes only its own.

    Without it the compiler is free to compute the whole batch on every device, silently.
    """
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, by_rows(mesh)), batch)


def place(tree, sharding):
    """Put arrays, of which every process holds the whole, where `sharding` (one, or a tree of them) says."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda x: put(x, sharding), tree)
    return jax.tree.map(put, tree, sharding)


def local_rows(rows: int, mesh: Mesh) -> slice:
    """Which of the `rows` rows of a global batch this process reads: those of its own devices."""
    parts = by_rows(mesh).addressable_devices_indices_map((rows,)).values()
    bounds = [part[0].indices(rows)[:2] for part in parts]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def place_rows(batch: dict[str, np.ndarray], rows: int, mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch of `rows` rows of which `batch` is this process's part, `local_rows`."""
    put = lambda x: jax.make_array_from_process_local_data(by_rows(mesh), x, (rows, *x.shape[1:]))
    return jax.tree.map(put, batch)


def to_host(tree):
    """Arrays as NumPy on every process, those too whose rows lie on other processes' devices."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def agreed(value: float) -> float:
    """The value that process 0 gives, in every process."""
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


def anywhere(happened: bool) -> bool:
    """Whether it happened in any process of the job; all of them ask together."""
    if jax.process_count() == 1:
        return happened
    return bool(multihost_utils.process_allgather(np.array([happened])).any())


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """ValueError when the global batch does not split evenly over the devices."""
    if batch_size % mesh.size:
        raise ValueError(
            f"batch_size {batch_size} does not split over {mesh.size} devices: use a multiple of {mesh.size}"
        )
