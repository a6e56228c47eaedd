"""An image classifier: pixels normalised, a body, a head; and what other models over a body share with it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ImageClassifier(nn.Module):
    """Body and head over images (B, H, W, channels), uint8 or floats in 0..255; returns logits (B, n_out).

    `body` has `features`, `block_names`, `groups` and `dtype` as `ResNet` does; `head` maps its last feature
    map to logits. `mean` and `std` are in 0..255 units, one number per channel. Variables lie under "body"
    and "head". Raises ValueError for images of another rank or with other channels than `mean` has.

    >>> from jaxfast.models import ImageClassifier, ClassifierHead, resnet18
    >>> model = ImageClassifier(resnet18(), ClassifierHead(10), mean=(127.0,) * 3, std=(128.0,) * 3)
    >>> model.groups
    (('body/stem', 'body/layer1', 'body/layer2'), ('body/layer3', 'body/layer4'), ('head',))
    """

    body: nn.Module
    head: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the body's blocks in order."""
        return self.body.block_names

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in groups, one rate each: two of the body, then the head."""
        return body_and_head(self.body)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.head(*self.head_inputs(images, train), train)

    def head_inputs(self, images: jax.Array, train: bool = False) -> tuple[jax.Array]:
        """What the head takes: the body's last map."""
        return (self.body(normalized(images, self.mean, self.std, self.body.dtype), train),)

    def features(self, images: jax.Array, train: bool = False, *, until: str | None = None) -> dict[str, jax.Array]:
        """Return the body's outputs by block, up to and including `until`; jit sorts such a dict by name."""
        x = normalized(images, self.mean, self.std, self.body.dtype)
        return self.body.features(x, train, until=until)

    def from_features(self, activation: jax.Array, after: str, train: bool = False) -> jax.Array:
        """Return the logits that follow from the output of block `after`: what Grad-CAM differentiates."""
        outputs = self.body.features(activation, train, after=after)
        last = outputs[self.body.block_names[-1]] if outputs else activation
        return self.head(last, train)


def body_and_head(body: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The groups of parameters of a model with `body` under "body" and everything else under "head"."""
    return *(tuple(f"body/{prefix}" for prefix in group) for group in body.groups), ("head",)


def normalized(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> jax.Array:
    """(images - mean) / std per channel in at least float32, then as `dtype`.

    Raises ValueError for images that are not (B, H, W, channels), as many channels as `mean` and `std` have numbers.
    """
    channels = len(mean)
    if images.ndim != 4 or images.shape[-1] != channels or len(std) != channels:
        raise ValueError(
            f"images of shape {images.shape} do not fit: expected (batch, height, width, {channels}), "
            f"as mean has {channels} and std {len(std)} numbers"
        )
    wide = jnp.promote_types(dtype, jnp.float32)
    x = (images.astype(wide) - jnp.asarray(mean, wide)) / jnp.asarray(std, wide)
    return x.astype(dtype)
