"""What every image model here is built from: convolution, batch normalisation, stochastic depth, blocks by name."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.kernels import batch_norm, conv2d


class Conv(nn.Module):
    """Square two-dimensional convolution of an NHWC array; parameters "kernel" (HWIO) and "bias".

    `padding=None` is torch's symmetric `(kernel_size - 1) // 2`; "SAME" is TensorFlow's, which pads more at
    the bottom and right when strided; "VALID" pads nothing. The kernel starts as kaiming normal over the fan
    out of one group (He et al. 2015; torchvision's ResNets, and timm's EfficientNets for depthwise kernels).
    """

    features: int
    kernel_size: int
    strides: int = 1
    padding: str | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        in_channels, k = x.shape[-1], self.kernel_size
        if in_channels % self.groups or self.features % self.groups:
            raise ValueError(
                f"convolution from {in_channels} to {self.features} channels does not split into "
                f"groups={self.groups}: both numbers must be multiples of it"
            )
        # variance 2 / fan_out, and one group's fan out is features / groups * k * k
        init = self.kernel_init or nn.initializers.variance_scaling(2.0 * self.groups, "fan_out", "normal")
        kernel = self.param("kernel", init, (k, k, in_channels // self.groups, self.features), jnp.float32)
        pad = (k - 1) // 2
        padding = ((pad, pad), (pad, pad)) if self.padding is None else self.padding
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = conv2d(x, kernel, strides=(self.strides, self.strides), padding=padding, groups=self.groups)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, by groups of the batch (Ioffe & Szegedy 2015).

    In training the batch is cut into `groups` equal runs along its first axis, and each is normalised by its
    own statistics: with one group (or several) on each device no device waits for another. The running
    statistics move by `1 - momentum` towards the average over the groups; the variance that enters them is
    torch's unbiased one. Outside training the running statistics are used and groups mean nothing. Parameters
    "scale" and "bias", batch_stats "mean" and "var", all of shape (channels,) and float32; the result has
    type `dtype`.

    `groups` given to the call overrides the attribute. Raises ValueError in training if the groups do not
    divide the batch, or if a group holds only one value per channel.
    """

    groups: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Callable = nn.initializers.ones
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, *, groups: int | None = None) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x = x.astype(self.dtype)
        if not train:
            wide = jnp.promote_types(self.dtype, jnp.float32)
            factor = scale.astype(wide) * jax.lax.rsqrt(running_var.value.astype(wide) + self.epsilon)
            y = (x.astype(wide) - running_mean.value.astype(wide)) * factor + bias.astype(wide)
            return y.astype(self.dtype)

        groups = self.groups if groups is None else groups
        batch = x.shape[0]
        if groups < 1 or batch % groups:
            raise ValueError(
                f"a training batch of {batch} does not split into {groups} batch-norm groups: "
                f"choose a batch size that is a multiple of {groups}"
            )
        count = x.size // channels // groups
        if count < 2:
            raise ValueError(
                f"batch norm over {count} value per channel (input {x.shape}, groups={groups}) is undefined: "
                "train with a larger batch or fewer groups"
            )
        y, mean, var = batch_norm(x, scale, bias, groups=groups, epsilon=self.epsilon, near=running_mean.value)
        if not self.is_initializing():
            unbiased = var.mean(axis=0) * (count / (count - 1))
            for running, new in ((running_mean, mean.mean(axis=0)), (running_var, unbiased)):
                moved = self.momentum * running.value + (1 - self.momentum) * new
                running.value = moved.astype(jnp.float32)
        return y


def drop_rates(last: float, n: int) -> tuple[float, ...]:
    """Return the rates of `stochastic_depth` of `n` blocks, rising linearly to the `last` one's (Huang et al. 2016).

    >>> drop_rates(0.5, 4)
    (0.125, 0.25, 0.375, 0.5)
    """
    return tuple(last * (i + 1) / n for i in range(n))


def stochastic_depth(branch: jax.Array, rate: float, train: bool) -> jax.Array:
    """Return a residual branch (B, H, W, C) without that of some examples, for use in a compact method.

    In training each example loses it with probability `rate`, and the others' is divided by 1 - rate, so that nothing
    changes in the mean (Huang et al. 2016, https://arxiv.org/abs/1603.09382; timm's DropPath). Rng "dropout", which a
    rate of 0 does not need.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2, 3), deterministic=not train)(branch)


def check_halves(x: jax.Array, what: str, least: int) -> None:
    """ValueError for a map (B, H, W, C) that has no half: the image was smaller than `least` pixels."""
    if min(x.shape[1:3]) < 2:
        raise ValueError(
            f"a map of {x.shape[1]}x{x.shape[2]} cannot be halved once more: {what} needs images of at least "
            f"{least}x{least} pixels"
        )


def select_blocks(names: Sequence[str], after: str | None, until: str | None) -> tuple[str, ...]:
    """Return the names that follow `after` (None: from the first) up to and including `until` (None: last).

    Raises ValueError for a name that is not in `names`, with the nearest one, and for an `until` before
    `after`.

    >>> select_blocks(("stem", "layer1_0", "layer1_1", "layer2_0"), "stem", "layer1_1")
    ('layer1_0', 'layer1_1')
    """
    for name in (after, until):
        if name is not None and name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise ValueError(f"no block {name!r}: the nearest is {nearest!r}, and all are {', '.join(names)}")
    start = 0 if after is None else names.index(after) + 1
    stop = len(names) if until is None else names.index(until) + 1
    if after is not None and until is not None and stop < start:
        raise ValueError(f"block {until!r} comes before {after!r}: `until` must follow `after`")
    return tuple(names[start:stop])
