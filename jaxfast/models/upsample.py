"""Upsampling: sub-pixel convolution that starts without a checkerboard, and the nearest pixel for any size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxfast.models.layers import Conv


def icnr(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """The start of a kernel that `pixel_shuffle` follows: kaiming normal, the same for all four sub-pixels.

    Twice as large an image then starts as its input with every pixel repeated (Aitken et al. 2017; fastai's
    `icnr_init`). ValueError where the last axis of `shape` is no multiple of 4.
    """
    *window, features = shape
    if features % 4:
        raise ValueError(f"{features} features do not make four sub-pixels: give a multiple of 4")
    kernel = nn.initializers.variance_scaling(2.0, "fan_in", "normal")(key, (*window, features // 4), dtype)
    return jnp.tile(kernel, 4)


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """(B, H, W, 4 C) to (B, 2 H, 2 W, C): the channels hold the upper left, upper right, lower left and lower right
    pixel, C numbers each (Shi et al. 2016).

    torch's PixelShuffle has the four pixels of a channel side by side instead; here the channels stay together, which
    makes this a copy of whole rows of numbers.

    >>> pixel_shuffle(jnp.arange(8).reshape(1, 1, 2, 4))[0, :, :, 0].tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """(B, H, W, C) to (B, *size, C): pixel i of n is the old pixel floor(i * old / n) (torch's interpolate, "nearest").

    >>> nearest(jnp.arange(3.).reshape(1, 1, 3, 1), (1, 4)).ravel().tolist()
    [0.0, 0.0, 1.0, 2.0]
    """
    for axis, new in enumerate(size, start=1):
        index = np.arange(new) * x.shape[axis] // new
        if index[-1] == new - 1:  # no pixel is skipped or repeated: a slice, whose gradient is cheap
            x = jax.lax.slice_in_dim(x, 0, new, axis=axis)
        else:
            x = jnp.take(x, index, axis=axis)
    return x


class PixelShuffle(nn.Module):
    """Twice as large: a 1x1 convolution ("conv", with bias, ICNR), ReLU, `pixel_shuffle` (fastai's PixelShuffle_ICNR).

    (B, H, W, channels) to (B, 2 H, 2 W, features). `blur`: each pixel is averaged with those above, to the left and
    between, which takes the checkerboard out of what is learned later (Sugawara et al. 2018).
    """

    features: int
    blur: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = Conv(4 * self.features, 1, use_bias=True, dtype=self.dtype, kernel_init=icnr, name="conv")
        x = pixel_shuffle(nn.relu(conv(x)))
        if self.blur:
            padded = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")
            rows = padded[:, 1:] + padded[:, :-1]
            x = (rows[:, :, 1:] + rows[:, :, :-1]) / 4
        return x
