r"""Optax optimizers with parameter groups, rates per group, cycled momentum and decoupled weight decay.

Two forms of the same thing. The recipes (`one_cycle_adamw`, `one_cycle_sgd`, `rmsprop`) are plain
`optax.GradientTransformation`s that count their own steps, for a bare optax loop:

>>> import jax, jax.numpy as jnp, optax
>>> params = {"body": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 1))}}
>>> def loss(params, x):
...     return jnp.mean((x @ params["body"]["kernel"] @ params["head"]["kernel"]) ** 2)
>>> tx = one_cycle_adamw(20, slice(1e-2, 1e-1), labels=label_by_prefix([("body",), ("head",)]))
>>> state = tx.init(params)
>>> @jax.jit
... def step(params, state, x):
...     value, grads = jax.value_and_grad(loss)(params, x)
...     updates, state = tx.update(grads, state, params)
...     return optax.apply_updates(params, updates), state, value
>>> losses = []
>>> for _ in range(20):
...     params, state, value = step(params, state, jnp.eye(2))
...     losses.append(float(value))
>>> losses[0], losses[-1] < losses[0] / 10
(4.0, True)

The `hyper_*` functions take the hyper-parameters of one step instead, `{"lr": (groups,), "momentum": (),
"weight_decay": ()}`, which may be traced: `hyper_adamw(hypers).update(grads, state, params)` inside a jitted
step compiles once for all rates and schedules, since the structure of the state does not depend on their
values.

Groups are labels: a pytree of ints like the parameters, 0 for the first group, or a function that makes it
from them. Clip before these transformations, `optax.chain(optax.clip_by_global_norm(1.),
one_cycle_adamw(...))`: within `optax.multi_transform`, which gives each group its rate here, a clip sees the
norm of each group alone.
"""

import numbers
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfast.schedules import one_cycle, one_cycle_momentum

Labels = Callable[[Any], Any] | Any
Rate = float | None


def discriminative(lr, n_groups: int, *, factor: float | None = None) -> tuple[Rate, ...]:
    """One learning rate per group, first group first; a slice means what it means in fastai (`set_hyper`).

    A number is every group's rate; with `factor` it is the last group's, and each group before has the next
    one's rate divided by `factor` (ULMFiT's 2.6: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146).
    `slice(b)` is b for the last group and b / 10 for the others, `slice(a, b)` is geometric from a to b, and
    a sequence is taken as it is; its entries may be None (the group is frozen). ValueError if a sequence is
    not `n_groups` long or a rate is negative.

    >>> discriminative(slice(1e-5, 1e-3), 3)
    (1e-05, 0.0001, 0.001)
    >>> discriminative(slice(1e-3), 3)
    (0.0001, 0.0001, 0.001)
    >>> discriminative(1., 3, factor=2.)
    (0.25, 0.5, 1.0)
    """
    if n_groups < 1:
        raise ValueError(f"n_groups must be at least 1, got {n_groups}")
    is_number = isinstance(lr, numbers.Real) or getattr(lr, "ndim", None) == 0
    if factor is not None and not (is_number and factor > 0):
        raise ValueError(f"factor spaces one rate by a positive number, got factor={factor} with lr={lr}")
    if not (is_number or isinstance(lr, slice) or hasattr(lr, "__iter__")):
        raise ValueError(f"lr must be a number, a slice or a sequence of numbers and None, got {lr}")
    if is_number:
        rates = tuple(float(lr) / (factor or 1.0) ** i for i in reversed(range(n_groups)))
    elif isinstance(lr, slice):
        if lr.stop is None or lr.step is not None:
            raise ValueError(f"a slice of rates is slice(last) or slice(first, last), got {lr}")
        last = float(lr.stop)
        first = last / 10 if lr.start is None else float(lr.start)
        if lr.start is not None and not (first > 0 and last > 0):
            raise ValueError(f"slice(first, last) is geometric and takes two positive rates, got {lr}")
        ratio = 1.0 if lr.start is None else (last / first) ** (1 / max(n_groups - 1, 1))
        # The last rate is given, not computed: it is exact, and the only one if there is one group.
        rates = (*(first * ratio**i for i in range(n_groups - 1)), last)
    else:
        rates = tuple(None if rate is None else float(rate) for rate in lr)
        if len(rates) != n_groups:
            what = f"got {len(rates)} rates for {n_groups} parameter groups"
            raise ValueError(f"{what}: give one rate per group, a number or a slice")
    if not all(rate is None or 0 <= rate < float("inf") for rate in rates):
        raise ValueError(f"a learning rate must be finite and not negative, got {lr}")
    return rates


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def label_by_prefix(groups: Sequence[Sequence[str]]) -> Callable[[Any], Any]:
    """A function from parameters to labels: a leaf gets the index of the group with a prefix of its path.

    A path joins keys, attribute names and indices with "/", so dicts, Flax variables and Equinox modules work
    alike. A prefix p matches p itself and what starts with "p/" or "p_": "layer1" matches "layer1_0/kernel",
    "block1" does not match "block10/kernel". The function raises ValueError that names the paths if a leaf
    matches no group or two, or if a group matches nothing.

    >>> label_by_prefix([("stem", "layer1"), ("head",)])({"stem": 0., "layer1_0": {"kernel": 0.}, "head": 0.})
    {'head': 1, 'layer1_0': {'kernel': 0}, 'stem': 0}
    """
    for i, prefixes in enumerate(groups):
        if isinstance(prefixes, str):
            raise ValueError(f"group {i} is a string: give a sequence of prefixes, such as ({prefixes!r},)")

    def has_prefix(path: str, prefixes: Sequence[str]) -> bool:
        return any(path == p or path.startswith((p + "/", p + "_")) for p in prefixes)

    def labels(params):
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        matches = [[i for i, prefixes in enumerate(groups) if has_prefix(path, prefixes)] for path in paths]
        found = list(zip(paths, matches, strict=True))
        if lost := [path for path, match in found if not match]:
            raise ValueError(f"no group has a prefix of {_few(lost)}: add one to {list(groups)}")
        if torn := [f"{path} (groups {match})" for path, match in found if len(match) > 1]:
            raise ValueError(f"a parameter belongs to one group, but more have a prefix of {_few(torn)}")
        if idle := [list(group) for i, group in enumerate(groups) if [i] not in matches]:
            raise ValueError(f"no parameter matches the group {idle[0]}; there are {_few(paths)}")
        return jax.tree_util.tree_unflatten(treedef, [match[0] for match in matches])

    return labels


def _labels_of(labels: Labels | None, tree) -> Any:
    if labels is None:
        return jax.tree.map(lambda _: 0, tree)
    groups = labels(tree) if callable(labels) else labels
    strange = {repr(g) for g in jax.tree.leaves(groups) if not (isinstance(g, numbers.Integral) and g >= 0)}
    if strange:
        raise ValueError(f"labels must be ints, 0 for the first group, got {_few(sorted(strange))}")
    return groups


def _n_groups(groups) -> int:
    return 1 + max(jax.tree.leaves(groups), default=0)


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
    if isinstance(hypers["lr"], numbers.Real) or getattr(hypers["lr"], "ndim", 1) != 1:
        raise ValueError(f'hypers["lr"] must have one axis, with one rate per group, got {hypers["lr"]}')
    rates = list(hypers["lr"])

    def transformation(rate, decays: bool):
        if rate is None:
            return optax.set_to_zero()
        decay = optax.add_decayed_weights(hypers["weight_decay"]) if decays else optax.identity()
        return optax.chain(direction, decay, optax.scale(-rate))

    def name(group: int, decays: bool) -> str:
        return f"{group}_decayed" if decays else f"{group}"

    def names(tree):
        # Named from the whole tree, not group by group: labels and masks that go by path must see all paths.
        groups = _labels_of(labels, tree)
        if (n_groups := _n_groups(groups)) > len(rates):
            raise ValueError(f"got {len(rates)} rates for {n_groups} parameter groups: give one per group")
        return jax.tree.map(name, groups, (decay_mask or _is_matrix)(tree))

    keys = [(i, decays) for i in range(len(rates)) for decays in (False, True)]
    tx = optax.multi_transform({name(*key): transformation(rates[key[0]], key[1]) for key in keys}, names)

    def update(updates, state, params=None):
        new_updates, new_state = tx.update(_wide(updates), state, _wide(params))
        return _cast_like(new_updates, updates), _cast_like(new_state, state)

    return optax.GradientTransformation(lambda params: tx.init(_wide(params)), update)


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


class RecipeState(NamedTuple):
    count: jax.Array  # shape=(), dtype=int32
    inner: Any


def _recipe(optimizer: Callable, labels, lr, weight_decay, schedule: Callable, momentum: optax.Schedule):
    """`optimizer`, a `hyper_*` function, driven by a count through `momentum` and `schedule(rate)`."""

    def at(count, tree):
        # The number of groups is only known with the tree at hand: a slice needs it.
        rates = discriminative(lr, _n_groups(_labels_of(labels, tree)))
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
