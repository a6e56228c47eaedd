"""The compiled programs of one task, each made once: training, validation, prediction."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxfast.data.loader import Padded, padded_batches
from jaxfast.losses import Loss, activation_of, with_constants, with_terms
from jaxfast.mesh import place, replicated, to_host
from jaxfast.messages import first
from jaxfast.metrics import HostMetric, Metric
from jaxfast.mix import unmixed
from jaxfast.training.check import check_dataset
from jaxfast.training.collect import collect, make_collection
from jaxfast.training.loop import evaluate_all, make_chunk, make_evaluation
from jaxfast.training.state import Trainable
from jaxfast.training.step import Step, make_carried, make_evaluate, make_forward, make_step, make_sums
from jaxfast.training.tta import corner_crops, crop_tta, make_crop_tta, make_tta, tta


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
    _crop_programs: dict = dataclasses.field(default_factory=dict)

    @cached_property
    def constants(self) -> Any:
        """What the loss reads and never writes (`losses.with_constants`), on every device; () of most losses."""
        constants, _ = with_constants(self.loss)
        return place(constants, replicated(self.mesh)) if jax.tree.leaves(constants) else ()

    def chunk(self, part: Trainable) -> Callable:
        """The training program (`make_chunk`) for one choice of trained parameters, its constants bound."""
        key = part.paths, part.frozen, part.train_norm
        if key not in self._chunks:
            chunk = make_chunk(
                self.step(part), self.data.batch_size, self.mesh, resident=self.resident, shard=self.shard
            )
            self._chunks[key] = partial(chunk, constants=self.constants)
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
            sums = evaluate_all(self._evaluation, variables, data, self.constants)
        else:
            sums = evaluate_all(self._evaluation_of_batch, variables, self._batches(data), self.constants)
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
            *rows, carry = self._predict_with_losses(variables, batch, self.constants)
            variables = variables | carry
            *arrays, mask = to_host((*rows, batch["mask"]))
            parts.append([array[mask] for array in arrays])
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def tta(self, variables: dict, dataset: Sequence, key, *, n: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
        """(predictions, targets) of every example by test-time augmentation with the data's own transforms: `tta`."""
        if getattr(self.data, "task", None) in ("segmentation", "points"):
            raise ValueError(f"the targets are {self.data.task}, which move with the image: get_preds predicts them")
        return tta(self._tta, variables, self._batches(dataset), key, n=n, beta=beta)

    def crop_tta(self, variables: dict, dataset: Sequence, *, n: int, zoom: float) -> tuple[np.ndarray, np.ndarray]:
        """(predictions, targets) of every example, over `n` crops of what is stored: `tta.crop_tta`."""
        task = getattr(self.data, "task", "")
        if "image" not in self.data.inputs or task in ("points", "segmentation"):
            what = f"the targets are {task}" if task else f"this model sees {first(self.data.inputs)}"
            raise ValueError(f"crops are averaged over whole images, {what}: give no crops")
        key = self.data.size, zoom
        if key not in self._crop_programs:
            self._crop_programs[key] = make_crop_tta(self._predict_prepared, corner_crops(*key))
        return crop_tta(self._crop_programs[key], variables, self._batches(dataset), n=n)

    @cached_property
    def predict(self) -> Callable:
        """The compiled function (variables, batch) -> activated outputs."""
        return jax.jit(lambda variables, batch: self._predict_prepared(variables, self._prepared(batch)))

    def _batches(self, dataset: Sequence):
        check_dataset(dataset)
        return padded_batches(dataset, self.data.batch_size, self.mesh)

    def _prepared(self, batch: dict) -> dict:
        """A batch as it reaches the module and the loss; programs call it once, before both."""
        return batch if self.data.prepare is None else self.data.prepare(batch)

    @cached_property
    def _activation(self) -> Callable:
        return activation_of(self.loss)

    @cached_property
    def _carried(self) -> Callable:
        return make_carried(self.module, self.data.inputs)

    @cached_property
    def _evaluate(self) -> Callable:
        return make_evaluate(self._carried, self.loss, self.metrics, self.data.prepare)

    @cached_property
    def _evaluation(self) -> Callable:
        return make_evaluation(self._evaluate, self.data.batch_size, self.mesh, resident=True)

    @cached_property
    def _evaluation_of_batch(self) -> Callable:
        return make_evaluation(self._evaluate, self.data.batch_size, self.mesh, resident=False)

    def _collected(self, variables: dict, data: Padded | Sequence):
        rows = data if isinstance(data, Padded) else self._batches(data)
        return collect(self._collection, variables, rows, self.constants)

    @cached_property
    def _collection(self) -> Callable:
        sums_of = make_sums(self.loss, self.metrics)
        return make_collection(self._carried, sums_of, self.data.batch_size, self.mesh, self.data.prepare)

    @cached_property
    def _tta(self) -> Callable:
        augment = unmixed(self.data.augment)
        if augment is None:
            raise ValueError("the data has no random transforms to average over: make it with augment=True")
        return make_tta(self._predict_prepared, augment, self.data.prepare)

    @cached_property
    def _predict_prepared(self) -> Callable:
        """The function (variables, batch) -> activated outputs of a batch as it reaches the module."""
        forward = make_forward(self.module, self.data.inputs)
        return lambda variables, batch: self._activation(forward(variables, batch))

    @cached_property
    def _predict_with_losses(self) -> Callable:
        _, loss = with_constants(self.loss)

        def outputs(variables, batch, constants):
            batch = self._prepared(batch)
            raw, carry = self._carried(variables, batch)
            values, _ = with_terms(loss(raw, batch["target"], constants))
            return self._activation(raw), batch["target"], values, carry

        return jax.jit(outputs)
