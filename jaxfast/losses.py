"""Losses: functions of (outputs, target) that return one number per example, shape (batch,).

The training step averages them; validation sums them with padded rows left out. `activation_of` names the
function that turns a model's outputs into what a person reads (probabilities, values).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Loss = Callable[[Array, Array], Float[Array, " batch"]]

VOID = 255
"""The target of a pixel that belongs to no class: it counts in no loss and no metric."""


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


def segmentation_cross_entropy(
    logits: Float[Array, "batch height width classes"], target: Int[Array, "batch height width"]
) -> Float[Array, " batch"]:
    """Softmax cross entropy in nats, the mean over the pixels of an image that are not VOID; 0 where all are."""
    log_p, truth, real = _pixels("segmentation_cross_entropy", logits, target)
    return _mean_of_real(-(truth * log_p).sum(-1), real)


def focal(
    logits: Float[Array, "batch height width classes"], target: Int[Array, "batch height width"], *, gamma: float = 2.0
) -> Float[Array, " batch"]:
    """Cross entropy weighted by (1 - p)^gamma with p the probability of the truth, so that sure pixels count less: the
    mean over the pixels of an image that are not VOID (Lin et al. 2017, without their weights of classes)."""
    if not gamma >= 0:
        raise ValueError(f"gamma={gamma}: give a number from 0 (plain cross entropy) on")
    log_p, truth, real = _pixels("focal", logits, target)
    log_p = (truth * log_p).sum(-1)
    # a floor, as the derivative of a power below 1 has none
    unsure = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
    return _mean_of_real(-(unsure**gamma) * log_p, real)


def dice(
    logits: Float[Array, "batch height width classes"],
    target: Int[Array, "batch height width"],
    *,
    smooth: float = 1e-6,
) -> Float[Array, " batch"]:
    """1 - the mean over classes of (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), 0..1.

    The sums are over the pixels of an image that are not VOID; p are softmax probabilities and t is 1 at pixels of the
    class (Milletari et al. 2016; fastai's DiceLoss, of which this is the mean, not the sum, over classes and images). A
    class that is not in the image counts almost 1.
    """
    log_p, truth, real = _pixels("dice", logits, target)
    p = jnp.exp(log_p) * real[..., None]
    both, sizes = (p * truth).sum((1, 2)), (p + truth).sum((1, 2))
    return 1 - ((2 * both + smooth) / (sizes + smooth)).mean(-1)


def pixel_mse(
    logits: Float[Array, "batch height width classes"], target: Int[Array, "batch height width"]
) -> Float[Array, " batch"]:
    """Mean squared error of the softmax probabilities against 1 for the truth and 0 for the other classes (Brier 1950),
    over the classes and the pixels of an image that are not VOID. For outputs that are pictures themselves: `mse`."""
    log_p, truth, real = _pixels("pixel_mse", logits, target)
    return _mean_of_real(jnp.square(jnp.exp(log_p) - truth).mean(-1), real)


def weighted_sum(outputs: Array, target: Array, *, terms: Sequence[tuple[float, Loss]]) -> Float[Array, " batch"]:
    """Several losses in one: the sum of weight * loss over `terms`, which `functools.partial` fixes.

    >>> both = partial(weighted_sum, terms=((1.0, segmentation_cross_entropy), (0.5, dice)))
    >>> round(both(jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 4, 4), jnp.uint8)).item(), 4)
    1.0265
    """
    return sum(weight * with_terms(loss(outputs, target))[0] for weight, loss in terms)


@runtime_checkable
class LossWithConstants(Protocol):
    """A loss that brings arrays which it reads and never writes, such as the weights of a loss network.

    It is called `loss(outputs, target, constants)`. Compiled programs take `constants`, a pytree, as an argument: in a
    closure they would be part of the program's text. They are in no checkpoint and in no export.
    """

    constants: Any

    def __call__(self, outputs: Array, target: Array, constants: Any) -> Array: ...


def with_constants(loss: Loss) -> tuple[Any, Callable[[Array, Array, Any], Any]]:
    """Return (constants, call): what `loss` brings, () for most, and `call(outputs, target, constants)`.

    Of a `weighted_sum` the constants are those of its terms, in their order.
    """
    inner, terms = loss, ()
    while isinstance(inner, partial):
        inner, terms = inner.func, inner.keywords.get("terms", terms)
    if isinstance(inner, WithActivation):
        return with_constants(inner.loss)
    if isinstance(inner, LossWithConstants):
        return inner.constants, loss
    if inner is not weighted_sum or not any(with_constants(term)[0] for _, term in terms):
        return (), lambda outputs, target, _: loss(outputs, target)
    parts = [(weight, *with_constants(term)) for weight, term in terms]

    def call(outputs: Array, target: Array, constants: Any):
        found = [with_terms(each(outputs, target, c)) for (_, _, each), c in zip(parts, constants, strict=True)]
        named = {name: values for _, more in found for name, values in more.items()}
        return sum(weight * values for (weight, *_), (values, _) in zip(parts, found, strict=True)), named

    return tuple(constants for _, constants, _ in parts), call


def with_terms(result: Any) -> tuple[Array, Mapping[str, Array]]:
    """Return (values, terms) of what a loss gives: values (batch,), or those and named ones, which are reported too.

    >>> with_terms((1.0, {"pixel": 0.5})), with_terms(1.0)
    ((1.0, {'pixel': 0.5}), (1.0, {}))
    """
    return result if isinstance(result, tuple) else (result, {})


def _pixels(loss: str, logits: Array, target: Array) -> tuple[Array, Array, Array]:
    """(log probabilities, the truth as 0 and 1 per class, whether it is no VOID) of every pixel, in at least fp32."""
    if logits.ndim != 4 or logits.shape[:-1] != target.shape or not jnp.issubdtype(target.dtype, jnp.integer):
        raise ValueError(
            f"{loss} takes outputs (batch, height, width, classes) and whole-numbered masks of the same size, these "
            f"are {logits.shape} and {target.dtype} {target.shape}: give masks and a model that fit"
        )
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return log_p, jax.nn.one_hot(target, logits.shape[-1], dtype=log_p.dtype), target != VOID


def _mean_of_real(values: Array, real: Array) -> Array:
    return jnp.where(real, values, 0).sum((1, 2)) / jnp.maximum(real.sum((1, 2)), 1)


_softmax = partial(jax.nn.softmax, axis=-1)
_identity = lambda outputs: outputs
_activations = {
    cross_entropy: _softmax,
    segmentation_cross_entropy: _softmax,
    focal: _softmax,
    dice: _softmax,
    pixel_mse: _softmax,
    binary_cross_entropy: jax.nn.sigmoid,
    mse: _identity,
}


@dataclasses.dataclass(frozen=True)
class WithActivation:
    """A loss that carries what turns the outputs that it takes into what a person reads (`with_activation`)."""

    loss: Loss
    activation: Callable[[Array], Array]

    def __call__(self, outputs: Array, target: Array) -> Float[Array, " batch"]:
        return self.loss(outputs, target)


def with_activation(loss: Loss, activation: Callable[[Array], Array]) -> WithActivation:
    """`loss`, for which predictions are `activation(outputs)`.

    >>> counts = with_activation(lambda outputs, target: optax.squared_error(outputs[:, 0], target), jnp.exp)
    >>> activation_of(counts)(jnp.zeros((1, 1))).tolist()
    [[1.0]]
    """
    return WithActivation(loss, activation)


_of_tasks = {"single_label": _softmax, "multi_label": jax.nn.sigmoid, "segmentation": _softmax}


def activation_of(loss: Loss, task: str | None = None) -> Callable[[Array], Array]:
    """What turns the outputs that `loss` takes into probabilities.

    A loss that carries an activation (`with_activation`) has that one. One that is not of this file has that of the
    data's `task` ("single_label", "multi_label", "segmentation"), else the identity. Of a `weighted_sum` it is that of
    its terms; raises ValueError if they differ.

    >>> activation_of(partial(cross_entropy, label_smoothing=0.1))(jnp.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    terms = ()
    while isinstance(loss, partial):
        terms = loss.keywords.get("terms", terms)
        loss = loss.func
    if isinstance(loss, WithActivation):
        return loss.activation
    if loss is not weighted_sum:
        known = _activations.get(loss) if loss.__hash__ else None
        return known or _of_tasks.get(task, _identity)
    activations = {activation_of(term, task) for _, term in terms}
    if len(activations) != 1:
        raise ValueError(
            f"the {len(terms)} terms of weighted_sum read outputs in {len(activations)} ways: give losses of one task"
        )
    return activations.pop()
