"""Optimizers as functions of the hyper-parameters of one step, which may be traced."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxfast.optim.groups import Labels, count_groups, labels_of


def _is_matrix(tree) -> Any:
    """The default decay mask: leaves of two or more axes, so no scales of norms and no biases."""
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)


def _wide(tree):
    """At least float32: in bfloat16 a b2 of 0.999 rounds to 1 and small changes of an average are lost."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)), tree)


def _cast_like(tree, like):
    return jax.tree.map(lambda new, old: new.astype(jnp.result_type(old)), tree, like)


def _per_group(direction, hypers: Mapping, labels, decay_mask) -> optax.GradientTransformation:
    """`direction`, then decoupled decay where the mask says so, then minus the group's rate; None freezes."""

    def transformation(rate, decays: bool):
        decay = optax.add_decayed_weights(hypers["weight_decay"]) if decays else optax.identity()
        return optax.chain(direction, decay, optax.scale(-rate))

    return _grouped(transformation, hypers, labels, decay_mask)


def _grouped(transformation: Callable, hypers: Mapping, labels, decay_mask) -> optax.GradientTransformation:
    """`transformation(rate, decays)` for each group and for what the mask lets decay in it; a rate of None freezes."""
    if isinstance(hypers["lr"], numbers.Real) or getattr(hypers["lr"], "ndim", 1) != 1:
        raise ValueError(f'hypers["lr"] must have one axis, with one rate per group, got {hypers["lr"]}')
    rates = list(hypers["lr"])

    def name(group: int, decays: bool) -> str:
        return f"{group}_decayed" if decays else f"{group}"

    def names(tree):
        # Named from the whole tree, not group by group: labels and masks that go by path must see all paths.
        groups = labels_of(labels, tree)
        if (n_groups := count_groups(groups)) > len(rates):
            raise ValueError(f"got {len(rates)} rates for {n_groups} parameter groups: give one per group")
        return jax.tree.map(name, groups, (decay_mask or _is_matrix)(tree))

    made = lambda rate, decays: optax.set_to_zero() if rate is None else transformation(rate, decays)
    keys = [(i, decays) for i in range(len(rates)) for decays in (False, True)]
    tx = optax.multi_transform({name(*key): made(rates[key[0]], key[1]) for key in keys}, names)

    def update(updates, state, params=None):
        new_updates, new_state = tx.update(_wide(updates), state, _wide(params))
        return _cast_like(new_updates, updates), _cast_like(new_state, state)

    return optax.GradientTransformation(lambda params: tx.init(_wide(params)), update)


def per_group(direction: optax.GradientTransformation | Callable, *, decay_mask=None) -> Callable:
    """Return an optimizer for `Learner` from a direction without a rate, such as `optax.scale_by_lion()`.

    Each group gets its own rate, and decoupled weight decay where `decay_mask` says so (by default leaves of two or
    more axes). `direction` may be a function of the step's momentum: `per_group(lambda b1: optax.scale_by_lion(b1))`.
    """

    def optimizer(hypers: Mapping, *, labels: Labels | None = None) -> optax.GradientTransformation:
        made = isinstance(direction, optax.GradientTransformation)
        return _per_group(direction if made else direction(hypers["momentum"]), hypers, labels, decay_mask)

    return optimizer


def from_factory(factory: Callable, *, decay_mask=None) -> Callable:
    """Return an optimizer for `Learner` from a factory of optax that takes `learning_rate`, such as `optax.lion`.

    Each group gets its own rate. The step's momentum is given as `b1`, or `momentum`, and its weight decay as
    `weight_decay`, where the factory takes them; what `decay_mask` leaves out (by default leaves of one axis) has a
    decay of 0. Fix other arguments with `functools.partial`.
    """
    known = inspect.signature(factory).parameters
    momentum = next((name for name in ("b1", "momentum") if name in known), None)

    def optimizer(hypers: Mapping, *, labels: Labels | None = None) -> optax.GradientTransformation:
        def transformation(rate, decays: bool):
            options = {momentum: hypers["momentum"]} if momentum else {}
            if "weight_decay" in known:
                options["weight_decay"] = hypers["weight_decay"] if decays else 0.0
            return factory(learning_rate=rate, **options)

        return _grouped(transformation, hypers, labels, decay_mask)

    return optimizer


def hyper_adamw(
    hypers: Mapping, *, labels: Labels | None = None, decay_mask=None, b2=0.99, eps=1e-5,
) -> optax.GradientTransformation:  # fmt: skip
    """fastai's Adam at the given hyper-parameters `{"lr": (groups,), "momentum": (), "weight_decay": ()}`.

    fastai's (and torch's AdamW's) step: p *= 1 - lr * weight_decay, then p -= lr * m / (sqrt(v) + eps) with
    both averages corrected by the current momentum and b2. All three entries may be traced; an "lr" that is a
    sequence may hold None, which freezes that group and keeps no moments for it. Without `labels` there is
    one group.

    Weight decay: the course says to start with 0.1; too much never fits however long one trains, too little
    fits and can be stopped early, hence fastai's cautious default of 0.01 (fast.ai, Practical Deep Learning
    for Coders v3, lesson 5). It is decoupled from the gradient (Loshchilov and Hutter 2019,
    https://arxiv.org/abs/1711.05101). `decay_mask`, a function from parameters to a tree of bools, says which
    decay: by default those of two or more axes, so no norms or biases, as in fastai.
    """
    return _per_group(optax.scale_by_adam(hypers["momentum"], b2, eps), hypers, labels, decay_mask)


def hyper_sgd(
    hypers: Mapping, *, labels: Labels | None = None, decay_mask=None, nesterov: bool = False,
) -> optax.GradientTransformation:  # fmt: skip
    """fastai's SGD at the given hyper-parameters (see `hyper_adamw`).

    Its average is not damped: m = momentum * m + grad, p -= lr * m. Weight decay is decoupled as in fastai
    (`decouple_wd=True`); torch's SGD adds it to the gradient instead.
    """
    return _per_group(optax.trace(hypers["momentum"], nesterov), hypers, labels, decay_mask)


def hyper_rmsprop(
    hypers: Mapping, *, labels: Labels | None = None, decay_mask=None, b2=0.99, eps=1e-8,
) -> optax.GradientTransformation:  # fmt: skip
    """RMSProp at the given hyper-parameters (see `hyper_adamw`).

    Its steps are grad / (sqrt(v) + eps), without bias correction. Momentum sums those steps up, as in torch
    (and so in the fastai of the course); fastai v2 sums the gradients up and then divides. With momentum 0,
    their default, the two agree. Weight decay is decoupled, as in fastai.
    """
    direction = optax.chain(optax.scale_by_rms(b2, eps, eps_in_sqrt=False), optax.trace(hypers["momentum"]))
    return _per_group(direction, hypers, labels, decay_mask)
