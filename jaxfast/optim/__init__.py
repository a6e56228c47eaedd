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

`from_factory(optax.lion)` and `per_group(optax.scale_by_lion())` make such a function of what optax has.

Groups are labels: a pytree of ints like the parameters, 0 for the first group, or a function that makes it
from them. Clip before these transformations, `optax.chain(optax.clip_by_global_norm(1.),
one_cycle_adamw(...))`: within `optax.multi_transform`, which gives each group its rate here, a clip sees the
norm of each group alone.
"""

from jaxfast.optim.groups import discriminative, label_by_prefix
from jaxfast.optim.hyper import from_factory, hyper_adamw, hyper_rmsprop, hyper_sgd, per_group
from jaxfast.optim.recipes import one_cycle_adamw, one_cycle_sgd, rmsprop
from jaxfast.optim.wrap import accumulated, averaged, averages, clipped

__all__ = [
    "accumulated",
    "averaged",
    "averages",
    "clipped",
    "discriminative",
    "from_factory",
    "hyper_adamw",
    "hyper_rmsprop",
    "hyper_sgd",
    "label_by_prefix",
    "one_cycle_adamw",
    "one_cycle_sgd",
    "per_group",
    "rmsprop",
]
