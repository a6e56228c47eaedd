"""From a body's last feature map to logits: fastai's head for fine-tuning, ImageNet's linear one."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.layers import BatchNorm


def sigmoid_range(x: jax.Array, y_range: tuple[float, float] | None) -> jax.Array:
    """Bend numbers to lie between the ends of `y_range` by a sigmoid (fastai's SigmoidRange); None leaves them."""
    if y_range is None:
        return x
    low, high = y_range
    return low + (high - low) * nn.sigmoid(x)


class ClassifierHead(nn.Module):
    """fastai's `create_head`: average and max pooling side by side, then norm, dropout, dense per layer.

    (B, H, W, C) to logits (B, n_out), in float32 whatever the body computed in; to (B, k, 2) where `n_out` is (k, 2),
    for k places. `y_range`: the ends of what it answers (`sigmoid_range`). `hidden` are the widths between, each a
    dense layer without bias and a ReLU; `dropout` is the rate before the last layer, half of it before the others
    (rng "dropout"). Kernels start as kaiming normal. Layers norm0, dense0, norm1, dense1, ...
    """

    n_out: int | tuple[int, ...]
    hidden: tuple[int, ...] = (512,)
    dropout: float = 0.5
    y_range: tuple[float, float] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
        shape = (self.n_out,) if isinstance(self.n_out, int) else tuple(self.n_out)
        for i, width in enumerate((*self.hidden, math.prod(shape))):
            last = i == len(self.hidden)
            x = BatchNorm(dtype=x.dtype, name=f"norm{i}")(x, train=train)
            x = nn.Dropout(self.dropout if last else self.dropout / 2, deterministic=not train)(x)
            kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            x = nn.Dense(width, use_bias=last, dtype=x.dtype, kernel_init=kaiming, name=f"dense{i}")(x)
            x = x if last else nn.relu(x)
        return sigmoid_range(x.reshape(-1, *shape), self.y_range)


class LinearHead(nn.Module):
    """Global average pooling, dropout and one dense layer, "dense": ImageNet's head of both bodies.

    (B, H, W, C) to logits (B, n_out), in float32 whatever the body computed in. EfficientNet-Lite0 was
    trained with `dropout=.2` (rng "dropout"), ResNet with none. The kernel starts as in torch's Linear, U(-1,
    1) / sqrt(C).
    """

    n_out: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Dense(self.n_out, dtype=x.dtype, kernel_init=uniform, name="dense")(x)
