"""One training step, a composition of an objective and its update: a pure function that `jit` and loops compose."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from jaxtyping import Array

from jaxfast.losses import Loss, with_constants, with_terms
from jaxfast.models.layers import BatchNorm
from jaxfast.training.apply import apply
from jaxfast.training.state import AUGMENT, DROPOUT, Trainable, TrainState, key_for
from jaxfast.training.update import Batch, Hypers, Objective, Report, UpdateState, make_update, split_state

Step = Callable[..., tuple[TrainState, dict[str, Array]]]
"""`step(state, batch, hypers, constants=()) -> (state, {"loss", "finite", any more scalars by name})`."""


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


def supervised(
    module: nn.Module,
    loss: Loss,
    inputs: Sequence[str] = ("image",),
    *,
    norm_groups: int = 1,
    frozen_norms: Sequence[str] = (),
) -> Objective:
    """The objective of a module that predicts `batch["target"]` from the entries `inputs`: the mean of `loss` in fp32.

    What the module sows into the collection "penalties" (scalars) is differentiated together with the loss, and not
    reported (fastai's `loss_grad`). Batch statistics are those of `norm_groups` groups of rows; norm layers under the
    paths `frozen_norms` use and keep their running statistics. A loss may bring constants and report terms
    (`losses.with_constants`, `losses.with_terms`).
    """
    _, call = with_constants(loss)

    def objective(trained, frozen, model_state, batch, key, constants):
        variables = {"params": Trainable.merge(trained, frozen), **model_state}
        with _norm_policy(norm_groups, frozen_norms):
            outputs, changed = apply(
                module,
                variables,
                *(batch[name] for name in inputs),
                train=True,
                rngs={"dropout": key},
                mutable=[*model_state, "penalties"],
            )
        changed = dict(changed)
        penalties = jax.tree.leaves(changed.pop("penalties", {}))
        values, terms = with_terms(call(outputs, batch["target"], constants))
        value = values.mean()
        return value + sum(penalties), Report(value, changed, {name: term.mean() for name, term in terms.items()})

    return objective


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
    """The function `step(state, batch, hypers, constants=()) -> (state, {"loss", "finite", ...})`.

    `hypers` = {"lr": (groups,), "momentum": (), "weight_decay": ()} are traced values, so that every schedule shares
    the compiled step. Only the parameters of `part` are differentiated. `loss` is the mean over the batch in fp32. A
    step whose loss, gradient or rate is not finite changes nothing but the step count and the loss scale; "finite"
    says so (an overflow that a loss scale provokes does not count). The terms of the loss stand beside it by their
    names. `constants` are those of the loss (`losses.with_constants`): give them as an argument of the compiled
    program, because weights in a closure become part of its text.

    `accumulate`: split each batch into this many micro-batches and average their gradients; batch statistics are then
    those of `norm_groups * accumulate` groups. `shard`: the mesh over which the state is split (`mesh.state_sharding`).
    Raises ValueError for a batch that micro-batches and groups do not divide.
    """
    # Frozen norm layers keep their statistics; where their scales are trained they are in train mode, as in fastai.
    frozen_norms = () if part.train_norm else part.frozen
    objective = supervised(module, loss, inputs, norm_groups=norm_groups, frozen_norms=frozen_norms)
    update = make_update(objective, optimizer, part, norm_groups=norm_groups, accumulate=accumulate, shard=shard)

    def step(state: TrainState, batch: Batch, hypers: Hypers, constants: Any = ()):
        if augment is not None:
            batch = augment(key_for(state.key, AUGMENT, state.step), batch)
        before = UpdateState(state.params, state.model_state, state.opt_state)
        key = key_for(state.key, DROPOUT, state.step)
        after, outcome = update(before, batch, hypers, key, state.loss_scale, constants)
        state = state.replace(
            step=state.step + 1,
            params=after.params,
            model_state=after.model_state,
            opt_state=after.opt_state,
            loss_scale=None if state.loss_scale is None else state.loss_scale.adjust(outcome.applied),
        )
        # With a loss scale an overflow is no fault: the step is skipped and the scale halved.
        finite = outcome.applied if state.loss_scale is None else outcome.sound
        return split_state(state, shard), {"loss": outcome.value, "finite": finite, **outcome.terms}

    return step
