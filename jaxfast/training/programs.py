"""The compiled programs of one task, each made once: training, validation, prediction."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxfast.data.loader import Padded, padded_batches
from jaxfast.losses import Loss, activation_of
from jaxfast.mesh import to_host
from jaxfast.metrics import HostMetric, Metric
from jaxfast.mix import unmixed
from jaxfast.training.check import check_dataset
from jaxfast.training.collect import collect, make_collection
from jaxfast.training.loop import evaluate_all, make_chunk, make_evaluation
from jaxfast.training.state import Trainable
from jaxfast.training.step import Step, make_carried, make_evaluate, make_forward, make_step, make_sums
from jaxfast.training.tta import make_tta, tta


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """What is compiled for a module on data: `data` has inputs, batch_size, augment and prepare (see `Learner`).

    With `resident`, training and validation programs read whole data sets that lie on the device.
    """

    module: nn.Module
    data: object
    loss: Loss
    metrics: Sequence[Metric | HostMetric]
    optimizer: Callable
    mesh: Mesh
    norm_groups: int
    resident: bool
    accumulate: int = 1
    shard: bool = False
    _chunks: dict = dataclasses.field(default_factory=dict)

    def chunk(self, part: Trainable) -> Callable:
        """The training program (`make_chunk`) for one choice of trained parameters."""
        key = part.paths, part.frozen, part.train_norm
        if key not in self._chunks:
            self._chunks[key] = make_chunk(
                self.step(part), self.data.batch_size, self.mesh, resident=self.resident, shard=self.shard
            )
        return self._chunks[key]

    def step(self, part: Trainable) -> Step:
        """The training step (`make_step`) for one choice of trained parameters, not compiled."""
        return make_step(
            self.module,
            self.loss,
            self.optimizer,
            part,
            inputs=self.data.inputs,
            augment=self.data.augment,
            norm_groups=self.norm_groups,
            accumulate=self.accumulate,
            shard=self.mesh if self.shard else None,
        )

    def validate(self, variables: dict, data: Padded | Sequence) -> dict[str, float]:
        """The loss and metrics over padded arrays on the device, or over a data set that is read batch by batch."""
        rows = ()
        if any(isinstance(metric, HostMetric) for metric in self.metrics):
            sums, *rows = self._collected(variables, data)
        elif isinstance(data, Padded):
            sums = evaluate_all(self._evaluation, variables, data)
        else:
            sums = evaluate_all(self._evaluation_of_batch, variables, self._batches(data))
        results = {"loss": float(sums["loss"]["sum"] / max(sums["loss"]["count"], 1))}
        for metric in self.metrics:
            results[metric.name] = (
                metric.compute(*rows) if isinstance(metric, HostMetric) else metric.compute(sums[metric.name])
            )
        return results

    def raw_outputs(self, variables: dict, data: Padded | Sequence) -> tuple[np.ndarray, np.ndarray]:
        """(outputs, targets) of every example, on the host: outputs as losses and metrics take them."""
        return self._collected(variables, data)[1:]

    def outputs(self, variables: dict, dataset: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(predictions, targets, losses) of every example, on the host; predictions are activated outputs."""
        parts = []
        for batch in self._batches(dataset):
            predictions, losses, carry = self._predict_with_losses(variables, batch)
            variables = variables | carry
            *arrays, mask = to_host((predictions, batch["target"], losses, batch["mask"]))
            parts.append([array[mask] for array in arrays])
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def tta(self, variables: dict, dataset: Sequence, key, *, n: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
        """(predictions, targets) of every example by test-time augmentation with the data's own transforms: `tta`."""
        return tta(self._tta, variables, self._batches(dataset), key, n=n, beta=beta)

    @cached_property
    def predict(self) -> Callable:
        """The compiled function (variables, batch) -> activated outputs."""
        return jax.jit(lambda variables, batch: self._activation(self._forward(variables, batch)))

    def _batches(self, dataset: Sequence):
        check_dataset(dataset)
        return padded_batches(dataset, self.data.batch_size, self.mesh)

    @cached_property
    def _activation(self) -> Callable:
        return activation_of(self.loss)

    @cached_property
    def _forward(self) -> Callable:
        return make_forward(self.module, self.data.inputs, self.data.prepare)

    @cached_property
    def _carried(self) -> Callable:
        return make_carried(self.module, self.data.inputs, self.data.prepare)

    @cached_property
    def _evaluation(self) -> Callable:
        evaluate = make_evaluate(self._carried, self.loss, self.metrics)
        return make_evaluation(evaluate, self.data.batch_size, self.mesh, resident=True)

    @cached_property
    def _evaluation_of_batch(self) -> Callable:
        evaluate = make_evaluate(self._carried, self.loss, self.metrics)
        return make_evaluation(evaluate, self.data.batch_size, self.mesh, resident=False)

    def _collected(self, variables: dict, data: Padded | Sequence):
        return collect(self._collection, variables, data if isinstance(data, Padded) else self._batches(data))

    @cached_property
    def _collection(self) -> Callable:
        return make_collection(self._carried, make_sums(self.loss, self.metrics), self.data.batch_size, self.mesh)

    @cached_property
    def _tta(self) -> Callable:
        augment = unmixed(self.data.augment)
        if augment is None:
            raise ValueError("the data has no random transforms to average over: make it with augment=True")
        forward = make_forward(self.module, self.data.inputs)
        predict = lambda variables, batch: self._activation(forward(variables, batch))
        return make_tta(predict, augment, self.data.prepare)

    @cached_property
    def _predict_with_losses(self) -> Callable:
        def outputs(variables, batch):
            raw, carry = self._carried(variables, batch)
            return self._activation(raw), self.loss(raw, batch["target"]), carry

        return jax.jit(outputs)
