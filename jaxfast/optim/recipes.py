"""Optimizers that count their own steps and drive their own schedules: plain optax transformations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfast.optim.groups import Labels, count_groups, discriminative, labels_of
from jaxfast.optim.hyper import hyper_adamw, hyper_rmsprop, hyper_sgd
from jaxfast.schedules import one_cycle, one_cycle_momentum


class RecipeState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    inner: Any


def _recipe(optimizer: Callable, labels, lr, weight_decay, schedule: Callable, momentum: optax.Schedule):
    """`optimizer`, a `hyper_*` function, driven by a count through `momentum` and `schedule(rate)`."""

    def at(count, tree):
        # The number of groups is only known with the tree at hand: a slice needs it.
        rates = discriminative(lr, count_groups(labels_of(labels, tree)))
        lrs = [None if rate is None else schedule(rate)(count) for rate in rates]
        hypers = {"lr": lrs, "momentum": momentum(count), "weight_decay": weight_decay}
        return optimizer(hypers, labels=labels)

    def init(params):
        count = jnp.zeros([], jnp.int32)
        return RecipeState(count, at(count, params).init(params))

    def update(updates, state, params=None):
        updates, inner = at(state.count, updates).update(updates, state.inner, params)
        return updates, RecipeState(optax.safe_increment(state.count), inner)

    return optax.GradientTransformation(init, update)


def one_cycle_adamw(
    total_steps, lr, *, labels: Labels | None = None, weight_decay=0.01, decay_mask=None,
    moms=(0.95, 0.85, 0.95), pct_start=0.25, div=25.0, div_final=1e5, b2=0.99, eps=1e-5,
) -> optax.GradientTransformation:  # fmt: skip
    """AdamW over one cycle of `total_steps` steps: fastai's `fit_one_cycle` with its defaults.

    `lr` is the highest rate, a number, slice or sequence as in `discriminative`, None freezing a group;
    `labels` are the groups (without them, one). See `hyper_adamw` for the step and for weight decay,
    `one_cycle` for the schedules. ValueError at `init` if the rates do not match the groups.
    """
    optimizer = partial(hyper_adamw, decay_mask=decay_mask, b2=b2, eps=eps)
    cycle = partial(one_cycle, total_steps, pct_start=pct_start, div=div, div_final=div_final)
    cycle(1.0)  # so that a wrong number is an error here and not at the first step
    momentum = one_cycle_momentum(total_steps, moms, pct_start=pct_start)
    return _recipe(optimizer, labels, lr, weight_decay, cycle, momentum)


def one_cycle_sgd(
    total_steps, lr, *, labels: Labels | None = None, weight_decay=0.0, decay_mask=None,
    moms=(0.95, 0.85, 0.95), pct_start=0.25, div=25.0, div_final=1e5, nesterov: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    """SGD over one cycle of `total_steps`; arguments as in `one_cycle_adamw`, step as in `hyper_sgd`."""
    optimizer = partial(hyper_sgd, decay_mask=decay_mask, nesterov=nesterov)
    cycle = partial(one_cycle, total_steps, pct_start=pct_start, div=div, div_final=div_final)
    cycle(1.0)  # so that a wrong number is an error here and not at the first step
    momentum = one_cycle_momentum(total_steps, moms, pct_start=pct_start)
    return _recipe(optimizer, labels, lr, weight_decay, cycle, momentum)


def rmsprop(
    lr, *, labels: Labels | None = None, weight_decay=0.0, decay_mask=None, momentum=0.0, b2=0.99, eps=1e-8,
) -> optax.GradientTransformation:  # fmt: skip
    """RMSProp at constant rates; `lr` and `labels` as in `one_cycle_adamw`, step as in `hyper_rmsprop`."""
    optimizer = partial(hyper_rmsprop, decay_mask=decay_mask, b2=b2, eps=eps)
    constant = optax.constant_schedule
    return _recipe(optimizer, labels, lr, weight_decay, constant, constant(momentum))
