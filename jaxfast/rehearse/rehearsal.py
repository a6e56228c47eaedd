"""Compiling a learner's step for a topology, and what the compiled program tells."""

import dataclasses
import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxfast import precision as precision_
from jaxfast._extras import need
from jaxfast.losses import with_constants
from jaxfast.mesh import by_rows, check_batch_size, data_mesh, replicated
from jaxfast.rehearse import hlo
from jaxfast.rehearse.chips import CHIPS, Chip
from jaxfast.training import create_state


class DoesNotFit(Exception):
    """The program needs more memory than a chip has: `needed` of `capacity` bytes, as the compiler counts."""

    def __init__(self, needed: float, capacity: float):
        super().__init__(
            f"a step needs {needed / 2**30:.2f} GiB of the {capacity / 2**30:.2f} GiB of a chip: use a smaller batch, "
            "accumulate=k, shard=True, or more chips"
        )
        self.needed, self.capacity = needed, capacity


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a compiled step says of itself; bytes and operations are those of one chip and one step.

    `collectives`: {"all-reduce": {"count", "bytes"}, ...}. `cycles`: the sum of the compiler's estimates;
    `estimated_images_per_second_per_chip` (rows, where they are not images) and `share_of_peak` follow from it, None
    for chips whose clock is not published. All of it is the compiler's estimate, nothing was run.
    """

    model: str
    topology: str
    chips: int
    batch_size: int
    precision: str
    memory_per_chip_bytes: int
    memory_capacity_bytes: int
    flops: float
    collectives: dict[str, dict[str, int]]
    cycles: int
    estimated_images_per_second_per_chip: float | None
    share_of_peak: float | None
    compile_seconds: float

    def __str__(self) -> str:
        gib, used = 2**30, self.memory_per_chip_bytes
        said = ", ".join(f"{c['count']} {name} of {c['bytes'] / 1e6:.1f} MB" for name, c in self.collectives.items())
        rate, share = self.estimated_images_per_second_per_chip, self.share_of_peak
        speed = "not estimated" if rate is None else f"{rate:,.0f} examples/s per chip, {share:.0%} of peak"
        return "\n".join(
            [
                f"{self.model}, {self.topology} ({self.chips} chips), batch {self.batch_size}, {self.precision}: "
                f"compiled in {self.compile_seconds:.0f} s",
                f"memory per chip   {used / gib:.3f} of {self.memory_capacity_bytes / gib:.0f} GiB",
                f"operations        {self.flops / 1e12:.4f} TFLOP per chip and step",
                f"collectives       {said or 'none'}",
                f"speed             {speed} (the compiler's {self.cycles:,} cycles; nothing was run)",
            ]
        )


def rehearse(
    learn, topology: str, batch_size: int, *, precision: str = "auto", norm_groups: int | None = None
) -> Rehearsal:
    """Compile the training step of the learner `learn` for the TPU slice `topology`, such as "v5e:4x4", at a global
    `batch_size`.

    `norm_groups`: groups of batch statistics (default: as many as chips). ImportError that names the extra where
    libtpu is missing; ValueError for an unknown topology and a batch that does not split over it; `DoesNotFit`.
    """
    mesh, chip = _slice(topology)
    check_batch_size(batch_size, mesh)
    kind = precision_.resolve(precision, mesh.devices.flat[0])
    module = precision_.cast_module(learn.module, kind.dtype)
    if hasattr(module, "batch_size"):  # a language model carries a state per stream
        module = module.clone(batch_size=batch_size)
    task = learn.task.replaced(module=module, mesh=mesh, norm_groups=norm_groups or mesh.size)
    example = task.example
    inputs = example if learn.data.prepare is None else learn.data.prepare(example)
    part = learn.trainable
    state = create_state(
        module,
        [np.asarray(inputs[name]) for name in learn.data.inputs],
        learn.optimizer,
        part=part,
        loss_scale=precision_.LossScale.create() if kind.loss_scale else None,
        mesh=mesh,
        shard=task.shard,
        abstract=True,
    )
    abstract = lambda x, shape, sharding: jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
    batch = {name: abstract(x, (batch_size, *x.shape[1:]), by_rows(mesh)) for name, x in example.items()}
    hypers = {"lr": jnp.zeros(part.n_groups), "momentum": jnp.float32(0), "weight_decay": jnp.float32(0)}
    hypers = jax.tree.map(lambda x: abstract(x, x.shape, replicated(mesh)), hypers)
    constants, _ = with_constants(task.loss)
    constants = jax.tree.map(lambda x: abstract(x, x.shape, replicated(mesh)), constants)

    clock = time.perf_counter()
    compiled = _compiled(jax.jit(task.step(part), donate_argnums=0).lower(state, batch, hypers, constants))
    seconds = time.perf_counter() - clock
    text, memory = compiled.as_text(), compiled.memory_analysis()
    cycles = hlo.cycles(text)
    flops = float(_costs(compiled)["flops"]) + hlo.repeated_flops(text)
    rate = share = None
    if chip.clock and cycles:
        rate = batch_size / mesh.size / (cycles / chip.clock)
        share = flops / (cycles / chip.clock) / chip.flops
    return Rehearsal(
        model=type(learn.module).__name__,
        topology=topology,
        chips=mesh.size,
        batch_size=batch_size,
        precision=kind.dtype.name,
        memory_per_chip_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        memory_capacity_bytes=chip.memory,
        flops=flops,
        collectives=hlo.collectives(text),
        cycles=cycles,
        estimated_images_per_second_per_chip=rate,
        share_of_peak=share,
        compile_seconds=seconds,
    )


def largest_batch(small: Rehearsal, large: Rehearsal) -> int:
    """The largest global batch that fits a chip, by a straight line through the memory of two rehearsals.

    A multiple of the chips; 0 where not even the parameters fit. ValueError for two of the same batch size.
    """
    if small.batch_size == large.batch_size:
        raise ValueError(f"a line needs two batch sizes, both are {small.batch_size}")
    grows = (large.memory_per_chip_bytes - small.memory_per_chip_bytes) / (large.batch_size - small.batch_size)
    fixed = small.memory_per_chip_bytes - grows * small.batch_size
    rows = (small.memory_capacity_bytes - fixed) / max(grows, 1e-9)
    return max(int(rows) // small.chips * small.chips, 0)


def _slice(topology: str) -> tuple[Mesh, Chip]:
    """The mesh of a TPU slice that is not there, and its chip."""
    from jax.experimental import topologies

    name = topology.partition(":")[0]
    if name not in CHIPS or not re.fullmatch(r"[^:]+:\d+x\d+", topology):
        raise ValueError(
            f"unknown topology {topology!r}: give a chip ({', '.join(CHIPS)}) and its slice, such as v5e:4x4"
        )
    need("libtpu", extra="tpu", purpose="the TPU compiler")
    # Without these libtpu asks a metadata server that only TPU machines have, and complains.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        devices = topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # the plug-in raises its own kinds
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the TPU compiler does not know the topology {topology!r}: {reason}") from error
    return data_mesh(devices), CHIPS[name]


def _compiled(lowered):
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", str(error))
        if not found:
            raise
        units = {"K": 2**10, "M": 2**20, "G": 2**30}
        raise DoesNotFit(float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]) from None


def _costs(compiled) -> dict:
    costs = compiled.cost_analysis()
    return costs[0] if isinstance(costs, list) else costs
