"""A task: what is trained on what, and how, all that a learner is but its state."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxfast.data import loader
from jaxfast.losses import Loss, with_constants
from jaxfast.mesh import place, replicated
from jaxfast.metrics import HostMetric, Metric
from jaxfast.precision import Precision
from jaxfast.training.identity import describe
from jaxfast.training.loop import Pace, make_chunk
from jaxfast.training.programs import Programs
from jaxfast.training.state import Trainable
from jaxfast.training.step import Step, make_step


class TrainingProgram(NamedTuple):
    """A compiled `chunk` of steps (`make_chunk`, its constants bound), and the pace that its dispatches have learnt."""

    chunk: Callable
    pace: Pace


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a learner trains; an immutable value, of which `replaced` makes another.

    Args:
        data: has train, valid, batch_size, inputs, augment and prepare (see `Learner`).
        module: in the precision that it computes in.
        loss: a function (outputs, target) -> (batch,).
        metrics: of `metrics.resolve`.
        optimizer: a function (hypers, labels=) -> GradientTransformation.
        mesh: the devices.
        precision: of the computation, and whether gradients are scaled.
        norm_groups: groups of batch statistics.
        resident: whether the data lie on the device; "auto": where they fit.
        accumulate: micro-batches of a batch.
        shard: whether parameters and optimizer state are split over the devices.
        workers: processes that read data which does not lie on the device.
    """

    data: Any
    module: nn.Module
    loss: Loss
    metrics: tuple[Metric | HostMetric, ...]
    optimizer: Callable
    mesh: Mesh
    precision: Precision
    norm_groups: int
    resident: bool | str = "auto"
    accumulate: int = 1
    shard: bool = False
    workers: int = 0

    def replaced(self, **changes: Any) -> "Task":
        """Another task, of which `changes` are other; data that stay the same stay where they lie."""
        task = dataclasses.replace(self, **changes)
        if not {"data", "mesh", "resident", "workers"} & changes.keys():
            placed = {name: self.__dict__[name] for name in ("source", "held_out") if name in self.__dict__}
            task.__dict__.update(placed)
        return task

    @cached_property
    def on_device(self) -> bool:
        """Whether training and validation data lie on the device."""
        return loader.fits(self.data.train, self.data.valid) if self.resident == "auto" else bool(self.resident)

    @cached_property
    def source(self) -> loader.Resident | loader.Streamed:
        """What a training run reads; made, and data read, when it is first asked for."""
        if hasattr(self.data, "feed"):
            return self.data.feed(self.mesh, resident=self.on_device)
        if self.on_device:
            return loader.Resident.put(self.data.train, self.data.batch_size, self.mesh)
        return loader.Streamed(self.data.train, self.data.batch_size, self.mesh, self.workers)

    @cached_property
    def held_out(self) -> loader.Padded | Sequence:
        """The validation data: padded arrays on the device, or the data set that is read batch by batch."""
        if self.on_device:
            return loader.padded(self.data.valid, self.data.batch_size, self.mesh)
        return self.data.valid

    @cached_property
    def constants(self) -> Any:
        """What the loss reads and never writes (`losses.with_constants`), on every device; () of most losses."""
        constants, _ = with_constants(self.loss)
        return place(constants, replicated(self.mesh)) if jax.tree.leaves(constants) else ()

    @cached_property
    def example(self) -> dict[str, np.ndarray]:
        """A batch of one training example, as it is stored."""
        return self.data.train.batch(np.arange(1))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint remembers of the data (`identity.describe`)."""
        return describe(self.data)

    @cached_property
    def reads(self) -> tuple:
        """What every program of the task depends on; never the data themselves."""
        data = self.data
        shapes = tuple((name, np.shape(x)[1:], np.asarray(x).dtype.str) for name, x in sorted(self.example.items()))
        return self.module, self.loss, self.mesh, tuple(data.inputs), data.batch_size, data.prepare, shapes

    def step(self, trainable: Trainable) -> Step:
        """The training step (`make_step`) for one choice of trained parameters, not compiled."""
        return make_step(
            self.module,
            self.loss,
            self.optimizer,
            trainable,
            inputs=self.data.inputs,
            augment=self.data.augment,
            norm_groups=self.norm_groups,
            accumulate=self.accumulate,
            shard=self.mesh if self.shard else None,
        )

    def training_program(self, trainable: Trainable, programs: Programs) -> TrainingProgram:
        """The compiled program of one choice of trained parameters; from `programs`, where it is kept."""

        def make() -> TrainingProgram:
            options = {"resident": self.on_device, "shard": self.shard}
            return TrainingProgram(make_chunk(self.step(trainable), self.data.batch_size, self.mesh, **options), Pace())

        reads = (
            *self.reads, self.optimizer, self.data.augment, self.norm_groups, self.accumulate, self.shard,
            self.on_device, trainable.paths, trainable.frozen, trainable.train_norm,
        )  # fmt: skip
        program = programs.get("train", reads, make)
        return program._replace(chunk=partial(program.chunk, constants=self.constants))
