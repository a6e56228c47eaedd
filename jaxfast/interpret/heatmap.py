"""Grad-CAM: which parts of an image speak for a class, as values."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxfast import plot
from jaxfast.messages import check_answer

if TYPE_CHECKING:
    from flax import linen as nn
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Heatmap:
    """The evidence for one class in one image, as `grad_cam` found it."""

    image: np.ndarray
    """uint8 (H, W, C)."""
    values: np.ndarray
    """float32 (h, w), a value per cell of the layer, relative to the largest; all 0 without any evidence."""
    layer: str
    target: int
    label: str
    probability: float
    """Softmax probability of the target, 0..1."""

    def __repr__(self) -> str:
        (height, width), (rows, columns) = self.image.shape[:2], self.values.shape
        where = f"{rows} x {columns} cells of layer {self.layer}, image {height} x {width}"
        return f"Heatmap: {self.label}, probability {self.probability:.3f}; {where}"

    def plot(self) -> Figure:
        """Show the image beside itself under the map."""
        title = f"{self.label}, p {self.probability:.2f} (layer {self.layer})"
        return plot.heatmap(self.image, self.values, title)


def grad_cam(
    module: nn.Module,
    variables: Mapping[str, Any],
    image: np.ndarray | Array,
    *,
    target: int | None = None,
    layer: str | None = None,
    plus: bool = False,
    classes: Sequence[str] | None = None,
) -> Heatmap:
    """Map where an image (H, W, C), 0..255, holds evidence for the class `target` (default: the predicted).

    `layer` names a block of the module (default: its last block before the head). The channels of that block
    are weighted by the mean gradient of the class's logit (Selvaraju et al. 2017, Grad-CAM), with `plus` by
    Grad-CAM++ (Chattopadhay et al. 2018), summed, cut at 0 and divided by their maximum. `classes` gives
    the label's name. The module has `block_names`, `features(images, until=)` and
    `from_features(activation, after=)`; it runs in evaluation mode and nothing is changed.

    Raises ValueError for an image that is not (H, W, C), an unknown layer, and a target out of range.
    """
    if np.ndim(image) != 3:
        raise ValueError(f"the image has the shape {np.shape(image)}: give one (height, width, channels)")
    layer = module.block_names[-1] if layer is None else layer
    if layer not in module.block_names:
        near = difflib.get_close_matches(layer, module.block_names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(module.block_names)}"
        raise ValueError(f"the module has no layer {layer!r}: {hint}")
    images = np.asarray(image)[None]
    if target is not None:
        count = jax.eval_shape(module.apply, variables, images).shape[-1]
        if target not in range(count):
            raise ValueError(f"target is {target!r}: give a class from 0 to {count - 1}")
    # -1 rather than None, so that both share one compiled program
    values, index, probability = _grad_cam(
        module, variables, images, np.int32(-1 if target is None else target), layer=layer, plus=plus
    )
    check_answer(probability)
    index = int(index)
    return Heatmap(
        image=np.clip(np.round(np.asarray(image, np.float32)), 0, 255).astype(np.uint8),
        values=np.asarray(values),
        layer=layer,
        target=index,
        label=str(index) if classes is None else str(classes[index]),
        probability=float(probability),
    )


@partial(jax.jit, static_argnames=("module", "layer", "plus"))
def _grad_cam(module, variables, images, target, *, layer: str, plus: bool) -> tuple[Array, Array, Array]:
    activation = module.apply(variables, images, until=layer, method="features")[layer]

    def score(activation):
        logits = module.apply(variables, activation, after=layer, method="from_features")
        logits = logits[0].astype(jnp.float32)
        index = jnp.where(target < 0, jnp.argmax(logits), target)
        return logits[index], (index, jax.nn.softmax(logits)[index])

    gradient, (index, probability) = jax.grad(score, has_aux=True)(activation)
    gradient, activation = gradient[0].astype(jnp.float32), activation[0].astype(jnp.float32)
    if plus:
        # With exp(logit) as the score, higher derivatives are powers of the first (their equation 19).
        square = gradient**2
        rest = 2 * square + gradient**3 * activation.sum((0, 1))
        alpha = square / jnp.where(rest == 0, 1, rest)
        weights = (alpha * jax.nn.relu(gradient)).sum((0, 1))
    else:
        weights = gradient.mean((0, 1))
    values = jax.nn.relu((activation * weights).sum(-1))
    peak = values.max()
    values = jnp.minimum(values / jnp.where(peak > 0, peak, 1), 1)  # a fast division may exceed 1
    return values, index, probability
