"""What goes around an optimizer: clipping, accumulation, averaged weights.

Each takes and gives a function (hypers, labels=) -> GradientTransformation such as `hyper_adamw`, so they compose:
`Learner(..., optimizer=averaged(clipped(hyper_adamw, 1.0)))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Optimizer = Callable[..., optax.GradientTransformation]


def clipped(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """Scale the gradients of all trained parameters together down to the global norm `max_norm` (fastai's
    GradientClip).

    ValueError for a norm that is not positive.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    return lambda hypers, **options: optax.chain(optax.clip_by_global_norm(max_norm), optimizer(hypers, **options))


def accumulated(optimizer: Optimizer, steps: int) -> Optimizer:
    """Apply the mean gradient of every `steps` batches once (fastai's GradientAccumulation counts examples instead).

    Batches between change neither parameters nor moments; the step that applies uses its own rate. ValueError for fewer
    than 1 step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return lambda hypers, **options: optax.MultiSteps(
        optimizer(hypers, **options), every_k_schedule=steps
    ).gradient_transformation()


class AveragedState(NamedTuple):
    """`average`: a tree like the trained parameters; `count`: steps averaged so far, shape ()."""

    average: Any
    count: jax.Array
    inner: optax.OptState


def averaged(optimizer: Optimizer, decay: float = 0.999) -> Optimizer:
    """Keep an exponential moving average of the trained parameters beside them (Polyak and Juditsky 1992).

    The average forgets its start as fast as it can: its decay at step t is min(decay, (1 + t) / (10 + t)), as
    TensorFlow's ExponentialMovingAverage does. `averages` reads it. ValueError for a decay outside 0..1.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in 0..1, got {decay}")

    def wrapped(hypers, **options):
        tx = optimizer(hypers, **options)

        def init(params):
            return AveragedState(jax.tree.map(jnp.copy, params), jnp.zeros([], jnp.int32), tx.init(params))

        def update(updates, state, params):
            updates, inner = tx.update(updates, state.inner, params)
            keep = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
            moved = jax.tree.map(lambda a, p, u: keep * a + (1 - keep) * (p + u), state.average, params, updates)
            return updates, AveragedState(moved, optax.safe_increment(state.count), inner)

        return optax.GradientTransformation(init, update)

    return wrapped


def averages(opt_state: optax.OptState) -> Any:
    """The averaged parameters that `averaged` keeps in an optimizer state, wherever it is wrapped.

    ValueError when there are none.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AveragedState))
    found = [leaf for leaf in leaves if isinstance(leaf, AveragedState)]
    if not found:
        raise ValueError("the optimizer keeps no averages: wrap it, such as averaged(hyper_adamw)")
    return found[0].average
