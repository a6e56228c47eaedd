"""Losses: functions of (outputs, target) that return one number per example, shape (batch,).

The training step averages them; validation sums them with padded rows left out. `activation_of` names the
function that turns a model's outputs into what a person reads (probabilities, values).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Loss = Callable[[Array, Array], Float[Array, " batch"]]


def _per_example(values: Array) -> Float[Array, " batch"]:
    return values.reshape(values.shape[0], -1).mean(1)


def _check_shapes(loss: str, outputs: Array, target: Array, wanted: tuple[int, ...]) -> None:
    if target.shape != wanted:
        raise ValueError(
            f"{loss} of outputs {outputs.shape} takes targets {wanted}, these are {target.dtype} {target.shape}: "
            "give another loss, or a model with other outputs"
        )


def cross_entropy(
    logits: Float[Array, "batch ... classes"],
    target: Int[Array, "batch ..."] | Float[Array, "batch ... classes"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Softmax cross entropy in nats, in fp32; integer labels, or a distribution over classes per example.

    `label_smoothing` mixes the target with the uniform distribution (Szegedy et al. 2016; fastai's
    LabelSmoothingCrossEntropy uses 0.1). Label positions beyond the batch axis (pixels, tokens) are averaged.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: give a share from 0 to below 1")
    labelled = jnp.issubdtype(target.dtype, jnp.integer)
    _check_shapes("cross_entropy", logits, target, logits.shape[:-1] if labelled else logits.shape)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if labelled and not label_smoothing:
        return _per_example(optax.softmax_cross_entropy_with_integer_labels(logits, target))
    if labelled:
        target = jax.nn.one_hot(target, logits.shape[-1], dtype=logits.dtype)
    if label_smoothing:
        target = optax.smooth_labels(target, label_smoothing)
    return _per_example(optax.softmax_cross_entropy(logits, target))


def binary_cross_entropy(logits: Float[Array, "batch classes"], target: Array) -> Float[Array, " batch"]:
    """Sigmoid cross entropy in nats, averaged over classes: multi-hot targets (fastai's BCEWithLogitsLossFlat)."""
    _check_shapes("binary_cross_entropy", logits, target, logits.shape)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return _per_example(optax.sigmoid_binary_cross_entropy(logits, target.astype(logits.dtype)))


def mse(outputs: Array, target: Array) -> Float[Array, " batch"]:
    """Mean squared error per example; a trailing axis of size one in `outputs` is dropped (fastai's MSELossFlat)."""
    _check_shapes("mse", outputs, target, outputs.shape[:-1] if outputs.shape == (*target.shape, 1) else outputs.shape)
    outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)).reshape(target.shape)
    return _per_example(jnp.square(outputs - target))


_activations = {
    cross_entropy: partial(jax.nn.softmax, axis=-1),
    binary_cross_entropy: jax.nn.sigmoid,
}


def activation_of(loss: Loss) -> Callable[[Array], Array]:
    """What turns the outputs that `loss` takes into probabilities; the identity for a loss that is not of this file.

    >>> activation_of(partial(cross_entropy, label_smoothing=0.1))(jnp.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    while isinstance(loss, partial):
        loss = loss.func
    return _activations.get(loss, lambda outputs: outputs)
