"""What a block may add to its convolutions: self-attention over places, squeeze-excite over channels."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.layers import Conv

_kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class SpectralDense(nn.Module):
    """(..., channels) to (..., features) by a matrix over its largest singular value (Miyato et al. 2018); no bias.

    torch's `spectral_norm`: each training call takes one step of power iteration, and evaluation uses the vectors that
    the last one left; those of a fresh layer took 15. Parameter "raw_kernel" (channels, features), batch_stats "u"
    (features,) and "v" (channels,), all float32.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("raw_kernel", _kaiming, (channels, self.features), jnp.float32)
        start = lambda: jax.random.normal(self.make_rng("params"), (self.features,))
        left = self.variable("batch_stats", "u", start)
        right = self.variable("batch_stats", "v", jnp.zeros, (channels,), jnp.float32)
        matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        u, v, fixed = left.value, right.value, jax.lax.stop_gradient(kernel)
        for _ in range(15 if self.is_initializing() else int(train)):
            v = _unit(matmul(fixed, u))
            u = _unit(matmul(v, fixed))
        if train or self.is_initializing():
            left.value, right.value = u, v
        kernel = kernel / matmul(matmul(v, kernel), u)
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class SimpleSelfAttention(nn.Module):
    """Self-attention without softmax, (B, H, W, C) to the same (fastai's SimpleSelfAttention, after S. Doria).

    x + gamma * (x x^T) W x with x as a matrix (C, H x W): its cost grows with H x W, not with the square. "gamma" (1,)
    is at first zero. The products are float32 or wider: the sum over all places would overflow a half. Layer dense
    (`SpectralDense`).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch, height, width, channels = x.shape
        wide = jnp.promote_types(self.dtype, jnp.float32)
        places = x.astype(self.dtype).reshape(batch, height * width, channels)
        turned = SpectralDense(channels, self.dtype, name="dense")(places, train)
        gram = jnp.einsum("bnc,bnd->bcd", places, places, preferred_element_type=wide)
        found = jnp.einsum("bnd,bcd->bnc", turned, gram, preferred_element_type=wide)
        gamma = self.param("gamma", nn.initializers.zeros, (1,), jnp.float32)
        return x.astype(self.dtype) + (gamma * found).astype(self.dtype).reshape(x.shape)


class SqueezeExcite(nn.Module):
    """Each channel times a gate in 0..1 that all channels' means decide on (Hu et al. 2017; fastai's SEModule).

    (B, H, W, C) to the same; between the layers "reduce" and "expand" lie C / `reduction` channels, rounded up to a
    multiple of 8.
    """

    reduction: int = 16
    activation: Callable = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        mean = x.astype(wide).mean((1, 2), keepdims=True).astype(self.dtype)
        conv = lambda features, name: Conv(
            features, 1, use_bias=True, dtype=self.dtype, kernel_init=_kaiming, name=name
        )
        hidden = math.ceil(max(channels // self.reduction, 1) / 8) * 8
        between = self.activation(conv(hidden, "reduce")(mean))
        return x.astype(self.dtype) * nn.sigmoid(conv(channels, "expand")(between))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
