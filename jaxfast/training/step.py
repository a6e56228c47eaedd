"""One training step and one evaluation of a batch: pure functions that `jit`, `grad` and loops compose."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from jaxfast.kernels import apply_if
from jaxfast.losses import Loss
from jaxfast.mesh import replicated, state_sharding
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
    accumulate: int = 1,
    shard: Mesh | None = None,
) -> Step:
    """The function `step(state, batch, hypers) -> (state, {"loss", "finite"})`.

    `hypers` = {"lr": (groups,), "momentum": (), "weight_decay": ()} are traced values, so that every schedule shares
    the compiled step. Only the parameters of `part` are differentiated. `loss` is the mean over the batch in fp32. A
    step whose loss, gradient or rate is not finite changes nothing but the step count and the loss scale; "finite"
    says so (an overflow that a loss scale provokes does not count). What the module sows into the collection
    "penalties" (scalars) is differentiated together with the loss, and not reported (fastai's `loss_grad`).

    `accumulate`: the batch is computed in so many parts, one after the other, whose gradients are averaged; batch
    statistics are then those of `norm_groups * accumulate` groups. `shard`: the mesh over which the state is split
    (`mesh.state_sharding`); parameters are gathered where they are used. ValueError for a batch that the parts and
    groups do not divide.
    """
    # Frozen norm layers keep their statistics; where their scales are trained they are in train mode, as in fastai.
    still = () if part.train_norm else part.frozen

    def gather(tree):
        return tree if shard is None else jax.lax.with_sharding_constraint(tree, replicated(shard))

    def split(tree):
        return (
            tree if shard is None else jax.lax.with_sharding_constraint(tree, state_sharding(tree, shard, shard=True))
        )

    def gradients(trained, frozen, model_state, batch, key, scale):
        def objective(trained):
            variables = {"params": part.merge(gather(trained), gather(frozen)), **model_state}
            with _norm_policy(norm_groups, still):
                outputs, changed = module.apply(
                    variables,
                    *(batch[name] for name in inputs),
                    train=True,
                    rngs={"dropout": key},
                    mutable=[*model_state, "penalties"],
                )
            changed = dict(changed)
            penalties = jax.tree.leaves(changed.pop("penalties", {}))
            value = loss(outputs, batch["target"]).mean()
            return (value + sum(penalties)) * scale, (value, changed)

        grads, (value, model_state) = jax.grad(objective, has_aux=True)(trained)
        return split(grads), value, model_state

    def accumulated(trained, frozen, model_state, batch, key, scale):
        parts = _parts(batch, accumulate, norm_groups)

        def add(carry, i):
            total, value_sum, model_state = carry
            rows = jax.tree.map(lambda x: x[i], parts)
            grads, value, model_state = gradients(trained, frozen, model_state, rows, jax.random.fold_in(key, i), scale)
            return (jax.tree.map(jnp.add, total, grads), value_sum + value, model_state), None

        zeros = jax.tree.map(jnp.zeros_like, trained)
        one = jax.eval_shape(gradients, trained, frozen, model_state, jax.tree.map(lambda x: x[0], parts), key, scale)
        carry = zeros, jnp.zeros((), one[1].dtype), model_state
        (grads, value, model_state), _ = jax.lax.scan(add, carry, jnp.arange(accumulate))
        return jax.tree.map(lambda g: g / accumulate, grads), value / accumulate, model_state

    def step(state: TrainState, batch: Batch, hypers: Hypers):
        if augment is not None:
            batch = augment(key_for(state.key, AUGMENT, state.step), batch)
        trained, frozen = part.split(state.params)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        key = key_for(state.key, DROPOUT, state.step)
        compute = gradients if accumulate == 1 else accumulated
        grads, value, model_state = compute(trained, frozen, state.model_state, batch, key, scale)
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
        trained, opt_state, model_state = apply_if(applied, change, old, grads, model_state)
        state = state.replace(
            step=state.step + 1,
            params=part.merge(trained, frozen),
            model_state=model_state,
            opt_state=opt_state,
            loss_scale=None if state.loss_scale is None else state.loss_scale.adjust(applied),
        )
        return split(state), {"loss": value, "finite": finite}

    return step


def _parts(batch: Batch, n: int, groups: int) -> Batch:
    """`batch` in `n` parts along a new leading axis: part i has the i-th share of each group of rows, so that every
    device finds its rows of each part among those that it holds."""
    rows = len(jax.tree.leaves(batch)[0])
    if rows % (n * groups):
        raise ValueError(
            f"a batch of {rows} does not split into accumulate={n} parts of {groups} groups of batch statistics: "
            f"use a multiple of {n * groups}"
        )

    def cut(x):
        x = x.reshape(groups, n, rows // (groups * n), *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(n, rows // n, *x.shape[3:])

    return jax.tree.map(cut, batch)


def make_forward(module: nn.Module, inputs: Sequence[str], prepare: Callable | None = None):
    """The function `forward(variables, batch) -> outputs` of evaluation: no dropout, running statistics."""
    carried = make_carried(module, inputs, prepare)
    return lambda variables, batch: carried(variables, batch)[0]


def make_carried(module: nn.Module, inputs: Sequence[str], prepare: Callable | None = None):
    """`make_forward`'s function for batches that follow on each other: `forward(variables, batch) -> (outputs, carry)`.

    `carry` is what the variables of the next batch differ by: {"carry": ...} of a recurrent module, {} of others.
    """

    def forward(variables: dict, batch: Batch):
        if prepare is not None:
            batch = prepare(batch)
        kept = [name for name in ("carry",) if name in variables]
        outputs, carry = module.apply(variables, *(batch[name] for name in inputs), train=False, mutable=kept)
        return outputs, dict(carry)

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
    """The function `evaluate(variables, batch) -> (sums, carry)` of `make_carried` and `make_sums`."""
    sums_of = make_sums(loss, metrics)

    def evaluate(variables: dict, batch: Batch):
        outputs, carry = forward(variables, batch)
        return sums_of(outputs, batch), carry

    return evaluate
