"""An image classifier: pixels normalised, a body, a head."""

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
        body = tuple(tuple(f"body/{prefix}" for prefix in group) for group in self.body.groups)
        return (*body, ("head",))

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.head(self.body(self._normalized(images), train), train)

    def features(self, images: jax.Array, train: bool = False, *, until: str | None = None) -> dict[str, jax.Array]:
        """Return the body's outputs by block, up to and including `until`; jit sorts such a dict by name."""
        return self.body.features(self._normalized(images), train, until=until)

    def from_features(self, activation: jax.Array, after: str, train: bool = False) -> jax.Array:
        """Return the logits that follow from the output of block `after`: what Grad-CAM differentiates."""
        outputs = self.body.features(activation, train, after=after)
        last = outputs[self.body.block_names[-1]] if outputs else activation
        return self.head(last, train)

    def _normalized(self, images: jax.Array) -> jax.Array:
        channels = len(self.mean)
        if images.ndim != 4 or images.shape[-1] != channels or len(self.std) != channels:
            raise ValueError(
                f"images of shape {images.shape} do not fit: expected (batch, height, width, {channels}), "
                f"as mean has {channels} and std {len(self.std)} numbers"
            )
        wide = jnp.promote_types(self.body.dtype, jnp.float32)
        x = (images.astype(wide) - jnp.asarray(self.mean, wide)) / jnp.asarray(self.std, wide)
        return x.astype(self.body.dtype)
