"""One training step and one evaluation of a batch: pure functions that `jit`, `grad` and loops compose."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxfast.kernels import apply_if
from jaxfast.losses import Loss
from jaxfast.metrics import HostMetric, Metric
from jaxfast.models.layers import BatchNorm
from jaxfast.precision import all_finite
from jaxfast.training.state import AUGMENT, DROPOUT, Trainable, TrainState, key_for

Batch = dict[str, Array]
Hypers = dict[str, Array]
Step = Callable[[TrainState, Batch, Hypers], tuple[TrainState, dict[str, Array]]]


def _norm_policy(groups: int, frozen: Sequence[str]):
    """A Linen interceptor: batch statistics per group of rows, and running statistics in the layers under `frozen`."""

    def interceptor(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            path = "/".join(context.module.path)
            is_frozen = any(path == p or path.startswith((f"{p}/", f"{p}_")) for p in frozen)
            x, *train = args
            train = kwargs.pop("train", train[0] if train else False)
            return call(x, train=train and not is_frozen, groups=groups)
        return call(*args, **kwargs)

    return nn.intercept_methods(interceptor)


def make_step(
    module: nn.Module,
    loss: Loss,
    optimizer: Callable,
    part: Trainable,
    *,
    inputs: Sequence[str] = ("image",),
    augment: Callable | None = None,
    norm_groups: int = 1,
) -> Step:
    """The function `step(state, batch, hypers) -> (state, {"loss", "finite"})`.

    `hypers` = {"lr": (groups,), "momentum": (), "weight_decay": ()} are traced values, so that every schedule shares
    the compiled step. Only the parameters of `part` are differentiated. `loss` is the mean over the batch in fp32. A
    step whose loss, gradient or rate is not finite changes nothing but the step count and the loss scale; "finite"
    says so (an overflow that a loss scale provokes does not count).
    """
    # Frozen norm layers keep their statistics; where their scales are trained they are in train mode, as in fastai.
    still = () if part.train_norm else part.frozen

    def step(state: TrainState, batch: Batch, hypers: Hypers):
        if augment is not None:
            batch = augment(key_for(state.key, AUGMENT, state.step), batch)
        trained, frozen = part.split(state.params)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale

        def objective(trained):
            variables = {"params": part.merge(trained, frozen), **state.model_state}
            with _norm_policy(norm_groups, still):
                outputs, model_state = module.apply(
                    variables,
                    *(batch[name] for name in inputs),
                    train=True,
                    rngs={"dropout": key_for(state.key, DROPOUT, state.step)},
                    mutable=list(state.model_state),
                )
            value = loss(outputs, batch["target"]).mean()
            return value * scale, (value, model_state)

        grads, (value, model_state) = jax.grad(objective, has_aux=True)(trained)
        if state.loss_scale is not None:
            grads = jax.tree.map(lambda g: g / scale, grads)
        sound = jnp.isfinite(value)
        # Finite gradients, rates and state make a finite update, and reading the gradients once is the cheapest check.
        applied = sound & all_finite((grads, hypers))
        # With a loss scale an overflow is no fault: the step is skipped and the scale halved.
        finite = applied if state.loss_scale is None else sound

        def change(old, grads, model_state):
            trained, opt_state, _ = old
            updates, opt_state = optimizer(hypers, labels=lambda _: part.labels).update(grads, opt_state, trained)
            trained = jax.tree.map(lambda p, u: p + u.astype(p.dtype), trained, updates)
            return trained, opt_state, model_state

        old = trained, state.opt_state, state.model_state
        trained, opt_state, model_state = apply_if(applied, change, old, grads, dict(model_state))
        state = state.replace(
            step=state.step + 1,
            params=part.merge(trained, frozen),
            model_state=model_state,
            opt_state=opt_state,
            loss_scale=None if state.loss_scale is None else state.loss_scale.adjust(applied),
        )
        return state, {"loss": value, "finite": finite}

    return step


def make_forward(module: nn.Module, inputs: Sequence[str], prepare: Callable | None = None):
    """The function `forward(variables, batch) -> outputs` of evaluation: no dropout, running statistics."""

    def forward(variables: dict, batch: Batch):
        if prepare is not None:
            batch = prepare(batch)
        return module.apply(variables, *(batch[name] for name in inputs), train=False)

    return forward


def make_sums(loss: Loss, metrics: Sequence[Metric | HostMetric]):
    """The function `sums_of(outputs, batch) -> sums`: of the loss and each `Metric`, over rows whose mask is True."""
    added = [metric for metric in metrics if isinstance(metric, Metric)]

    def sums_of(outputs: Array, batch: Batch) -> dict:
        mask = batch["mask"]
        losses = jnp.where(mask, loss(outputs, batch["target"]).astype(jnp.float32), 0.0)
        sums = {"loss": {"sum": losses.sum(), "count": mask.sum().astype(jnp.float32)}}
        return sums | {metric.name: metric.update(outputs, batch["target"], mask) for metric in added}

    return sums_of


def make_evaluate(forward: Callable, loss: Loss, metrics: Sequence[Metric | HostMetric]):
    """The function `evaluate(variables, batch) -> sums` of `forward` and `make_sums`."""
    sums_of = make_sums(loss, metrics)
    return lambda variables, batch: sums_of(forward(variables, batch), batch)
