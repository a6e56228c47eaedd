"""A model over data sets: the sums of its metrics, its outputs, its predictions and losses."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxfast.data.loader import Padded, padded_batches
from jaxfast.losses import Loss, activation_of, with_constants, with_terms
from jaxfast.mesh import constrain_rows, to_host
from jaxfast.messages import first
from jaxfast.metrics import HostMetric, Metric
from jaxfast.mix import unmixed
from jaxfast.training.apply import apply
from jaxfast.training.check import check_dataset
from jaxfast.training.programs import Programs
from jaxfast.training.task import Task
from jaxfast.training.tta import corner_crops, crop_tta, make_crop_tta, make_tta, tta
from jaxfast.training.update import Batch


class Outputs(NamedTuple):
    """What a model says of every example of a data set, on the host: `outputs`, `targets` and `losses` (n, ...)."""

    outputs: np.ndarray
    targets: np.ndarray
    losses: np.ndarray


def make_forward(module: nn.Module, inputs: Sequence[str]) -> Callable:
    """The function `forward(variables, batch) -> (outputs, carry)` of evaluation: no dropout, running statistics.

    `carry` is what the variables of the next batch differ by: {"carry": ...} of a recurrent module, {} of others.
    """

    def forward(variables: dict, batch: Batch):
        kept = [name for name in ("carry",) if name in variables]
        outputs, carry = apply(module, variables, *(batch[name] for name in inputs), train=False, mutable=kept)
        return outputs, dict(carry)

    return forward


def make_sums(loss: Loss, metrics: Sequence[Metric | HostMetric]) -> Callable:
    """The function `sums_of(outputs, batch, constants) -> (sums, losses)` of a prepared batch.

    `sums`: of the loss and each `Metric`, over rows whose mask is True; `losses`: (batch,), of all rows.
    """
    added = [metric for metric in metrics if isinstance(metric, Metric)]
    _, call = with_constants(loss)

    def sums_of(outputs: Array, batch: Batch, constants: Any):
        mask = batch["mask"]
        losses, _ = with_terms(call(outputs, batch["target"], constants))
        counted = jnp.where(mask, losses.astype(jnp.float32), 0.0)
        sums = {"loss": {"sum": counted.sum(), "count": mask.sum().astype(jnp.float32)}}
        return sums | {metric.name: metric.update(outputs, batch["target"], mask) for metric in added}, losses

    return sums_of


def make_evaluation(
    forward: Callable, sums_of: Callable, prepare: Callable, batch_size: int, mesh: Mesh, *, resident: bool
) -> Callable:
    """The compiled function `evaluation(variables, data, batches, constants) -> (sums, carry)`.

    Over all batches of padded `data`, or with `resident=False` over `data` itself as one batch. `prepare(batch)` makes
    of stored rows what module and loss take, once for both. What a recurrent module carries passes from batch to batch,
    and to the next call by `variables | carry`.
    """

    def evaluate(variables, batch, constants):
        batch = prepare(constrain_rows(batch, mesh))
        outputs, carry = forward(variables, batch)
        return sums_of(outputs, batch, constants)[0], carry

    @jax.jit
    def evaluation(variables, data, batches, constants):
        def one(i, carry):
            rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * batch_size, batch_size), data)
            return evaluate(variables | carry, rows if resident else data, constants)

        def add(i, total):
            sums, carry = total
            new, carry = one(i, carry)
            return jax.tree.map(jnp.add, sums, new), carry

        sums, carry = jax.eval_shape(one, jax.ShapeDtypeStruct((), jnp.int32), {})
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums)
        return jax.lax.fori_loop(0, batches, add, (zeros, {name: variables[name] for name in carry}))

    return evaluation


def make_collection(
    forward: Callable, sums_of: Callable, read: Callable, prepare: Callable, batch_size: int, mesh: Mesh
) -> Callable:
    """The compiled function `collection(variables, data, constants) -> (sums, (outputs, targets, losses), carry)` for
    padded `data` of one or many batches. `read(outputs)` makes of the module's outputs those that are given."""

    @jax.jit
    def collection(variables, data, constants):
        def one(carry, batch):
            batch = prepare(constrain_rows(batch, mesh))
            outputs, carry = forward(variables | carry, batch)
            sums, losses = sums_of(outputs, batch, constants)
            return carry, (sums, (read(outputs), batch["target"], losses))

        rows = len(data["mask"])
        carry = {name: variables[name] for name in ("carry",) if name in variables}
        if rows == batch_size:
            carry, (sums, collected) = one(carry, data)
            return sums, collected, carry
        batches = jax.tree.map(lambda x: x.reshape(rows // batch_size, batch_size, *x.shape[1:]), data)
        carry, (sums, collected) = jax.lax.scan(one, carry, batches)
        collected = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), collected)
        return jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums), collected, carry

    return collection


class Evaluator:
    """A task's model over data sets; its programs are kept in `programs`.

    Its methods take the model's `variables`, and a data set or, where the data lie on the device, `Padded` arrays.
    """

    def __init__(self, task: Task, programs: Programs):
        self.task, self.programs = task, programs
        # What programs are made of holds neither the task nor its data, which programs outlive.
        self._prepare = task.data.prepare or _as_it_is
        self._forward = make_forward(task.module, task.data.inputs)

    def validate(self, variables: dict, data: Padded | Sequence) -> dict[str, float]:
        """The loss and metrics: {"loss": ..., "accuracy": ...}."""
        collected = ()
        if any(isinstance(metric, HostMetric) for metric in self.task.metrics):
            sums, collected = self._collect(variables, data, activated=False)
        else:
            sums = self._sums(variables, data)
        results = {"loss": float(sums["loss"]["sum"] / max(sums["loss"]["count"], 1))}
        for metric in self.task.metrics:
            host = isinstance(metric, HostMetric)
            results[metric.name] = metric.compute(*collected[:2]) if host else metric.compute(sums[metric.name])
        return results

    def outputs(self, variables: dict, data: Padded | Sequence) -> Outputs:
        """The outputs as losses and metrics take them, of every example."""
        return self._collect(variables, data, activated=False)[1]

    def predictions(self, variables: dict, data: Padded | Sequence) -> Outputs:
        """The activated outputs (probabilities where the loss takes logits) of every example."""
        return self._collect(variables, data, activated=True)[1]

    def predict(self, variables: dict, batch: Batch) -> Array:
        """The activated outputs of one batch of stored rows, without targets."""
        prepare, predict = self._prepare, self._predict_prepared
        make = lambda: jax.jit(lambda variables, batch: predict(variables, prepare(batch)))
        return self.programs.get("predict", self.task.reads, make)(variables, batch)

    def tta(self, variables: dict, dataset: Sequence, key: Array, *, n: int, beta: float) -> tuple:
        """(predictions, targets) of every example by test-time augmentation with the data's own transforms: `tta`."""
        data = self.task.data
        if getattr(data, "task", None) in ("segmentation", "points"):
            raise ValueError(f"the targets are {data.task}, which move with the image: get_preds predicts them")
        augment = unmixed(data.augment)
        if augment is None:
            raise ValueError("the data has no random transforms to average over: make it with augment=True")
        make = lambda: make_tta(self._predict_prepared, augment, data.prepare)
        program = self.programs.get("tta", (*self.task.reads, augment), make)
        return tta(program, variables, self._batches(dataset), key, n=n, beta=beta)

    def crop_tta(self, variables: dict, dataset: Sequence, *, n: int, zoom: float) -> tuple:
        """(predictions, targets) of every example, over `n` crops of what is stored: `tta.crop_tta`."""
        data = self.task.data
        task = getattr(data, "task", "")
        if "image" not in data.inputs or task in ("points", "segmentation"):
            what = f"the targets are {task}" if task else f"this model sees {first(data.inputs)}"
            raise ValueError(f"crops are averaged over whole images, {what}: give no crops")
        make = lambda: make_crop_tta(self._predict_prepared, corner_crops(data.size, zoom))
        program = self.programs.get("crop_tta", (*self.task.reads, data.size, zoom), make)
        return crop_tta(program, variables, self._batches(dataset), n=n)

    @property
    def _activation(self) -> Callable:
        return activation_of(self.task.loss, getattr(self.task.data, "task", None))

    @property
    def _predict_prepared(self) -> Callable:
        """The function (variables, batch) -> activated outputs of a batch as it reaches the module."""
        forward, activation = self._forward, self._activation
        return lambda variables, batch: activation(forward(variables, batch)[0])

    def _batches(self, dataset: Sequence) -> Iterator[Batch]:
        check_dataset(dataset)
        return padded_batches(dataset, self.task.data.batch_size, self.task.mesh)

    @property
    def _parts(self) -> tuple[Callable, Callable]:
        return self._forward, make_sums(self.task.loss, self.task.metrics)

    def _sums(self, variables: dict, data: Padded | Sequence) -> dict:
        """The sums over a whole data set, on the host."""
        task, resident = self.task, isinstance(data, Padded)
        make = partial(make_evaluation, *self._parts, self._prepare, task.data.batch_size, task.mesh, resident=resident)
        evaluation = self.programs.get("evaluation", (*task.reads, task.metrics, resident), make)
        if isinstance(data, Padded):
            return jax.device_get(evaluation(variables, data.data, np.int32(data.batches), task.constants)[0])
        sums = None
        for batch in self._batches(data):
            new, carry = evaluation(variables, batch, np.int32(1), task.constants)
            variables = variables | carry
            sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
        return jax.device_get(sums)

    def _collect(self, variables: dict, data: Padded | Sequence, *, activated: bool) -> tuple[dict, Outputs]:
        """(sums, outputs) of a whole data set on the host, padded rows left out of both."""
        task = self.task

        def make():
            read = self._activation if activated else _as_it_is
            return make_collection(*self._parts, read, self._prepare, task.data.batch_size, task.mesh)

        collection = self.programs.get("collection", (*task.reads, task.metrics, activated), make)

        def run() -> Iterator[tuple]:
            carried = variables
            for batch in [data.data] if isinstance(data, Padded) else self._batches(data):
                sums, rows, carry = collection(carried, batch, task.constants)
                carried = carried | carry
                yield sums, (*rows, batch["mask"])

        total, parts = None, []
        for sums, rows in _one_ahead(run()):
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
            *arrays, mask = to_host(rows)
            parts.append([array[mask] for array in arrays])
        return jax.device_get(total), Outputs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _as_it_is(x: Any) -> Any:
    return x


def _one_ahead(results: Iterable) -> Iterator:
    """`results` in order, the next one dispatched before one is handed out to be fetched."""
    waiting = None
    for result in results:
        if waiting is not None:
            yield waiting
        waiting = result
    if waiting is not None:
        yield waiting
