"""One update of one set of parameters: the gradient of an objective, its checks, and the optimizer's step.

An `Objective` says what is minimised, and is the only thing here that knows a module or a loss. A step (`make_step`) is
a composition of updates; one that trains two networks makes two of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Key

from jaxfast.kernels import apply_if
from jaxfast.mesh import replicated, state_sharding
from jaxfast.precision import LossScale, all_finite
from jaxfast.training.state import Trainable

Batch = dict[str, Array]
Hypers = dict[str, Array]


class Report(NamedTuple):
    """What an objective reports beside the scalar that is differentiated.

    `value`: the loss that is shown, a scalar in fp32. `model_state`: the model's other collections, changed (batch
    statistics). `terms`: more scalars by name, such as the parts of a sum of losses.
    """

    value: Float[Array, ""]
    model_state: dict
    terms: dict[str, Float[Array, ""]]


Objective = Callable[[dict, dict, dict, Batch, Key[Array, ""], Any], tuple[Float[Array, ""], Report]]
"""`objective(trained, frozen, model_state, batch, key, constants) -> (scalar to minimise, Report)`, a pure function.

`trained` and `frozen` are the two halves of the parameters (`Trainable.split`), `constants` a pytree of arrays that are
read and never written, such as the weights of a loss network.
"""


class UpdateState(NamedTuple):
    """What one update reads and changes: all parameters, the other collections, the optimizer's state."""

    params: dict
    model_state: dict
    opt_state: optax.OptState


class Outcome(NamedTuple):
    """What an update reports: the objective's `value` and `terms`; `sound`, whether the value is finite; `applied`,
    whether gradients and hyper-parameters were finite too, so that the parameters have changed."""

    value: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    sound: Bool[Array, ""]
    applied: Bool[Array, ""]


def make_update(
    objective: Objective,
    optimizer: Callable,
    trainable: Trainable,
    *,
    norm_groups: int = 1,
    accumulate: int = 1,
    shard: Mesh | None = None,
) -> Callable[..., tuple[UpdateState, Outcome]]:
    """Return `update(state, batch, hypers, key, loss_scale, constants) -> (UpdateState, Outcome)`.

    Only the parameters of `trainable` are differentiated. An update whose value, gradients or hyper-parameters are not
    finite changes nothing.

    Args:
        objective: what is minimised (`Objective`).
        optimizer: a function (hypers, labels=) -> GradientTransformation, such as `optim.hyper_adamw`.
        trainable: which parameters are trained, and the group of each.
        norm_groups: groups of rows that the objective takes batch statistics of; micro-batches keep them whole.
        accumulate: split each batch into this many micro-batches and average their gradients, values and terms.
        shard: the mesh over which the state is split (`mesh.state_sharding`); parameters are gathered where they are
            used.
    """

    def gather(tree):
        return tree if shard is None else jax.lax.with_sharding_constraint(tree, replicated(shard))

    def gradients(trained, frozen, model_state, batch, key, scale, constants):
        def scaled(trained):
            value, report = objective(gather(trained), gather(frozen), model_state, batch, key, constants)
            return value * scale, report

        grads, report = jax.grad(scaled, has_aux=True)(trained)
        return split_state(grads, shard), report

    def accumulated(trained, frozen, model_state, batch, key, scale, constants):
        batches = micro_batches(batch, accumulate, norm_groups)

        def one(i, model_state, rows):
            return gradients(trained, frozen, model_state, rows, jax.random.fold_in(key, i), scale, constants)

        def add(carry, i):
            total, value, terms, model_state = carry
            grads, report = one(i, model_state, jax.tree.map(lambda x: x[i], batches))
            total, terms = jax.tree.map(jnp.add, (total, terms), (grads, report.terms))
            return (total, value + report.value, terms, report.model_state), None

        like = jax.eval_shape(one, 0, model_state, jax.tree.map(lambda x: x[0], batches))[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (like.value, like.terms))
        carry = jax.tree.map(jnp.zeros_like, trained), *zeros, model_state
        (grads, value, terms, model_state), _ = jax.lax.scan(add, carry, jnp.arange(accumulate))
        grads, value, terms = jax.tree.map(lambda x: x / accumulate, (grads, value, terms))
        return grads, Report(value, model_state, terms)

    def update(
        state: UpdateState,
        batch: Batch,
        hypers: Hypers,
        key: Key[Array, ""],
        loss_scale: LossScale | None = None,
        constants: Any = (),
    ) -> tuple[UpdateState, Outcome]:
        trained, frozen = trainable.split(state.params)
        scale = 1.0 if loss_scale is None else loss_scale.scale
        compute = gradients if accumulate == 1 else accumulated
        grads, report = compute(trained, frozen, state.model_state, batch, key, scale, constants)
        if loss_scale is not None:
            grads = jax.tree.map(lambda g: g / scale, grads)
        sound = jnp.isfinite(report.value)
        # Finite gradients, rates and state make a finite update, and reading the gradients once is the cheapest check.
        applied = sound & all_finite((grads, hypers))

        def change(old, grads, model_state):
            trained, opt_state, _ = old
            updates, opt_state = optimizer(hypers, labels=lambda _: trainable.labels).update(grads, opt_state, trained)
            trained = jax.tree.map(lambda p, u: p + u.astype(p.dtype), trained, updates)
            return trained, opt_state, model_state

        old = trained, state.opt_state, state.model_state
        trained, opt_state, model_state = apply_if(applied, change, old, grads, report.model_state)
        changed = UpdateState(trainable.merge(trained, frozen), model_state, opt_state)
        return changed, Outcome(report.value, report.terms, sound, applied)

    return update


def split_state(tree: Any, mesh: Mesh | None) -> Any:
    """Split a state, or gradients of its parameters, over `mesh` as `mesh.state_sharding` says; None leaves them."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, state_sharding(tree, mesh, shard=True))


def micro_batches(batch: Batch, n: int, groups: int) -> Batch:
    """Split `batch` into `n` micro-batches along a new leading axis.

    Micro-batch i has the i-th share of each group of rows, so that every device finds its rows of each among those
    that it holds. Raises ValueError if the rows do not split into `n` times `groups`.
    """
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
