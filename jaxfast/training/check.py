"""What can be wrong with a task, said before anything compiles: its settings, its shapes, and what a fit is given."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfast import losses, optim
from jaxfast.messages import check_number, check_whole, first, kind, nearest
from jaxfast.metrics import HostMetric, Metric
from jaxfast.schedules import one_cycle_momentum
from jaxfast.training import recipes
from jaxfast.training.apply import apply, check_module, mode
from jaxfast.training.finder import LRFinder
from jaxfast.training.state import Trainable

_RECIPES = (
    recipes.early_stop, recipes.reduce_on_plateau, recipes.keep_best, recipes.csv_log, recipes.tensorboard_log,
)  # fmt: skip


def check_settings(
    data: Any,
    module: nn.Module,
    *,
    loss: Callable,
    weight_decay: float,
    moms: Sequence[float],
    seed: int,
    norm_groups: int | None,
    resident: bool | str,
    accumulate: int,
) -> None:
    """ValueError for an argument of `Learner` that is of another kind, or out of range."""
    lacking = [name for name in ("train", "valid", "batch_size", "inputs") if not hasattr(data, name)]
    if lacking:
        raise ValueError(f"data is {kind(data)}, without .{lacking[0]}: give what vision.from_folder or a sister makes")
    if not isinstance(module, nn.Module):
        raise ValueError(f"the module {_name(module)} is no Linen module: give one, such as ImageClassifier(...)")
    check_module(module)
    if not callable(loss):
        name = loss if isinstance(loss, str) and hasattr(losses, loss) else "cross_entropy"
        raise ValueError(f"loss={loss!r} is no function: give one of jaxfast.losses, such as losses.{name}")
    check_number("weight_decay", weight_decay)
    one_cycle_momentum(1, moms)  # raises for what are not three momenta
    check_whole("seed", seed, 0)
    check_whole("accumulate", accumulate)
    if resident not in (True, False, "auto"):
        raise ValueError(f"resident={resident!r}: give True, False or 'auto'")
    if norm_groups is not None:
        check_whole("norm_groups", norm_groups)
        if data.batch_size % norm_groups:
            raise ValueError(
                f"batch_size {data.batch_size} does not split into norm_groups={norm_groups} groups of batch "
                f"statistics: use a multiple of {norm_groups}"
            )
    if len(data.train) < data.batch_size:
        raise ValueError(
            f"batch_size {data.batch_size} is more than the {len(data.train)} training examples: use a smaller one"
        )


def check_optimizer(optimizer: Any, known: dict[str, Callable]) -> Callable:
    """The optimizer of a name, or itself; ValueError for another name, and for what is not called like one."""
    if isinstance(optimizer, str):
        if optimizer in known:
            return known[optimizer]
        raise ValueError(
            f"unknown optimizer {optimizer!r}: give one of {first(list(known))}{nearest(optimizer, known)}"
        )
    if isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            "the optimizer is made already and holds its rate: give its factory, such as optimizer=optax.lion, and the "
            "rates to fit, or a direction without a rate, optimizer=optim.per_group(optax.scale_by_lion())"
        )
    try:
        signature = inspect.signature(optimizer)
        if "learning_rate" in signature.parameters:
            return optim.from_factory(optimizer)
        signature.bind({}, labels=None)
    except TypeError:
        raise ValueError(
            f"the optimizer {_name(optimizer)} is not a function (hypers, labels=) -> GradientTransformation: give one "
            f"of {first(list(known))}, a factory such as optax.lion, or a function like jaxfast.optim.hyper_adamw"
        ) from None
    return optimizer


class Traced(NamedTuple):
    """What `check_task` finds: the names of the terms that the loss reports, and the outputs of one batch."""

    terms: tuple[str, ...]
    outputs: jax.ShapeDtypeStruct


def check_task(task: Any, variables: dict | None) -> Traced:
    """Trace the model, the loss and the metrics of a `Task` on one batch; nothing is computed.

    ValueError, with the shapes, where the model does not take the data, where the loss or a metric does not take the
    outputs with the targets, and for another number of outputs than the data has classes.
    """
    data, module, loss = task.data, task.module, task.loss
    example = task.example
    n = data.batch_size
    stored = {name: jax.ShapeDtypeStruct((n, *np.shape(x)[1:]), x.dtype) for name, x in example.items()}
    batch = stored if data.prepare is None else jax.eval_shape(data.prepare, stored)
    inputs, target = [batch[name] for name in data.inputs], batch["target"]
    if variables is not None and "params" not in variables:
        raise ValueError(f"variables has the entries {first(list(variables))}: give {{'params': ..., ...}}")
    if variables is None:
        run = lambda _, *x: module.init_with_output(jax.random.key(0), *x, **mode(module, False))[0]
    else:
        run = lambda variables, *x: apply(module, variables, *x, train=False)
    outputs = _traced(f"the model {_name(module)} fails on {_shapes(batch, data.inputs)}", run, variables, *inputs)

    n_out = getattr(data, "n_out", None)
    places = getattr(data, "task", None) == "points"  # (batch, k, 2)
    made = math.prod(outputs.shape[1:]) if places else outputs.shape[-1] if len(outputs.shape) > 1 else n_out
    if n_out is not None and made != n_out:
        raise ValueError(f"the model has {made} outputs, the data needs {n_out}: make the model with {n_out}")
    other = {"multi_label": "binary_cross_entropy", "segmentation": "segmentation_cross_entropy"}
    if (kind_ := getattr(data, "task", None)) in other and _plain(loss) is losses.cross_entropy:
        raise ValueError(f"cross_entropy takes one label per example, this data is {kind_}: give losses.{other[kind_]}")
    fails = f"fails on outputs {_shape(outputs)} and targets {_shape(target)}"
    constants, call = losses.with_constants(loss)
    values, terms = losses.with_terms(_traced(f"the loss {_name(loss)} {fails}", call, outputs, target, constants))
    names = ("train_loss", "valid_loss", "epoch", "time", *(metric.name for metric in task.metrics))
    if taken := [name for name in terms if name in names]:
        raise ValueError(f"the loss {_name(loss)} reports {taken[0]!r}, which is another column: rename its term")
    for name, term in terms.items():
        if term.shape != (n,):
            raise ValueError(f"the loss {_name(loss)} reports {name!r} of shape {term.shape}: give one per example")
    if values.shape != (n,):
        raise ValueError(
            f"the loss {_name(loss)} gives an array of shape {values.shape} for a batch of {n}: "
            "return one value per example, without a mean over the batch"
        )
    if data.augment is not None:
        augment = lambda batch: data.augment(jax.random.key(0), batch)
        augmented = _traced(f"augment fails on {_shapes(stored, stored)}", augment, stored)
        lost = [name for name in stored if name not in (augmented or {})]
        if lost:
            raise ValueError(f"augment leaves out {first(lost)}: return all entries, such as {{**batch, 'image': ...}}")
        wrong = f"the loss {_name(loss)} fails on augmented targets"
        _traced(wrong, call, outputs, augmented["target"], constants)
    for metric in task.metrics:
        if isinstance(metric, Metric):
            mask = jax.ShapeDtypeStruct((n,), jnp.bool_)
            _traced(f"the metric {metric.name} {fails}", metric.update, outputs, target, mask)
    return Traced(tuple(terms), outputs)


def check_metrics(metrics: Sequence[Metric | HostMetric], dataset: Any, outputs: jax.ShapeDtypeStruct) -> None:
    """Raise ValueError if a metric cannot be computed on the targets of `dataset`, such as roc_auc where all are of one
    class. Data sets that do not hold their targets as an array (`targets` or `target`) are not read for it."""
    targets = getattr(dataset, "targets", getattr(dataset, "target", None))
    if not (isinstance(targets, np.ndarray) and len(targets) == len(dataset)):
        return
    for metric in metrics:
        if isinstance(metric, HostMetric):
            try:
                metric.check(np.zeros((len(targets), *outputs.shape[1:]), outputs.dtype), targets)
            except ValueError as error:
                raise ValueError(
                    f"the metric {metric.name} cannot be computed on the validation set: {error}; choose another "
                    "metric, or another split"
                ) from error


def check_groups(optimizer: Callable, trainable: Trainable, params: dict) -> None:
    """Trace an optimizer's update of `params` (shapes will do). Raises ValueError if it ignores `labels` although there
    are several groups, whose rates it would lose, and if it cannot be traced."""
    asked = []

    def labels(_: Any) -> dict:
        asked.append(True)
        return trainable.labels

    def update(trained: dict) -> Any:
        hypers = {"lr": jnp.zeros(trainable.n_groups), "momentum": jnp.float32(0.9), "weight_decay": jnp.float32(0)}
        transformation = optimizer(hypers, labels=labels)
        return transformation.update(trained, transformation.init(trained), trained)

    _traced(f"the optimizer {_name(optimizer)} fails", update, trainable.split(params)[0])
    if not asked and trainable.n_groups > 1:
        raise ValueError(
            f"the optimizer ignores labels=, and the model has {trainable.n_groups} groups, each with its rate: use "
            "labels, or give a factory such as optimizer=optax.lion, or optim.per_group(direction)"
        )


def check_fine_tune(epochs: int, freeze_epochs: int, lr: float, lr_mult: float) -> None:
    """ValueError for what a second phase would only refuse after the first one has trained."""
    check_whole("epochs", epochs)
    check_whole("freeze_epochs", freeze_epochs)
    check_rates(lr)
    check_number("lr", lr)
    check_number("lr_mult", lr_mult, 1)


def check_fit(after_epoch: Sequence[Callable], metrics: Sequence[str], weight_decay: float) -> None:
    """ValueError for a decay or recipes that a fit cannot use; recipes are first called when an epoch has passed."""
    check_number("weight_decay", weight_decay)
    if callable(after_epoch) or isinstance(after_epoch, str):
        raise ValueError(f"after_epoch is {kind(after_epoch)}: give a list, such as after_epoch=[early_stop()]")
    known = ("train_loss", "valid_loss", *metrics)
    for recipe in after_epoch:
        if recipe in _RECIPES:
            raise ValueError(f"{_name(recipe)} makes a recipe: give {_name(recipe)}(...)")
        if not callable(recipe):
            raise ValueError(
                f"after_epoch holds {recipe!r}: give functions (epoch, metrics, state), such as early_stop()"
            )
        monitor = getattr(recipe, "monitor", None)
        if monitor is not None and monitor not in known:
            raise ValueError(f"no metric {monitor!r} to watch: there are {first(known, 20)}{nearest(monitor, known)}")


def check_part(part: Any, epochs: int) -> tuple[int, int]:
    """The first epoch of a part of `epochs` and the one after its last; of None all. ValueError for what is no part."""
    if part is None:
        return 0, epochs
    if not (isinstance(part, (tuple, list)) and len(part) == 2):
        raise ValueError(f"part={part!r}: give the first epoch and the one after the last, such as part=(0, {epochs})")
    start, end = part
    check_whole("the start of part", start, 0)
    check_whole("the end of part", end)
    if not start < end <= epochs:
        raise ValueError(f"part={part!r} is no part of {epochs} epochs: give 0 <= start < end <= {epochs}")
    return start, end


def check_schedules(lr: Any, n_groups: int) -> tuple | None:
    """One schedule or rate for each group, of a schedule or of a sequence that holds one; None where `lr` has none.
    Raises ValueError for a sequence of another length."""
    if callable(lr):
        return (lr,) * n_groups
    if not isinstance(lr, (list, tuple)) or not any(map(callable, lr)):
        return None
    if len(lr) != n_groups:
        raise ValueError(f"{len(lr)} schedules for {n_groups} parameter groups: give one per group")
    for rate in lr:
        if not callable(rate):
            check_number("lr", rate)
    return tuple(lr)


def check_rates(lr: Any) -> None:
    """ValueError for what has to do with learning rates, and is none."""
    if isinstance(lr, LRFinder):
        raise ValueError("lr is all that lr_find found: give one of its suggestions, such as found.valley")
    if callable(lr):
        raise ValueError("lr is a schedule, which only fit takes: give a number, a slice, or one rate per group")
    if isinstance(lr, (list, tuple)) and None in lr:
        raise ValueError(f"lr={lr!r} holds None: give every group a number, and freeze the first ones with freeze_to")


def check_dataset(dataset: Any) -> None:
    """ValueError for what is not one split of some data."""
    if not (hasattr(dataset, "batch") and hasattr(dataset, "__len__")):
        part = ": give its .valid or .train" if hasattr(dataset, "valid") else ": give one, such as data.valid"
        raise ValueError(f"{kind(dataset)} is no data set{part}")


def _traced(fails: str, function: Callable, *args: Any) -> Any:
    """The shapes that a function gives; a sentence of this library's own goes through as it is."""
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        trace = error.__traceback__
        while trace.tb_next is not None:
            trace = trace.tb_next
        if isinstance(error, ValueError) and str(trace.tb_frame.f_globals.get("__name__")).startswith("jaxfast."):
            raise
        reason = " ".join(str(error).split()).partition(" (https:")[0]
        raise ValueError(f"{fails}: {reason[:160]}") from error


def _plain(function: Callable) -> Callable:
    while isinstance(function, partial):
        function = function.func
    return function


def _name(thing: Any) -> str:
    thing = _plain(thing)
    return thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)


def _shapes(batch: dict, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_shape(batch[name])}" for name in names)


def _shape(x: jax.ShapeDtypeStruct) -> str:
    return f"{x.dtype} {x.shape}"
