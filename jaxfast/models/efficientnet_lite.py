"""EfficientNet-Lite (Google 2020): EfficientNet (Tan & Le 2019) with ReLU6 and without squeeze-and-excite."""

import math
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.layers import BatchNorm, Conv, drop_rates, select_blocks, stochastic_depth

# the pixels' scaling, in 0..255 units, under which Google trained these networks
MEAN = (127.0, 127.0, 127.0)
STD = (128.0, 128.0, 128.0)


class Block(NamedTuple):
    """One inverted bottleneck: kernel size, stride, expansion and output channels."""

    kernel_size: int
    strides: int
    expansion: int
    features: int


# (repeats, first block), as in the paper's table 1
STAGES = (
    (1, Block(3, 1, 1, 16)),
    (2, Block(3, 2, 6, 24)),
    (2, Block(5, 2, 6, 40)),
    (3, Block(3, 2, 6, 80)),
    (3, Block(5, 1, 6, 112)),
    (4, Block(5, 2, 6, 192)),
    (1, Block(3, 1, 6, 320)),
)


def scaled_blocks(width: float, depth: float) -> tuple[Block, ...]:
    """Return all blocks with channels scaled by `width` (to multiples of 8), repeats by `depth` (rounded up).

    The repeats of the first and last stage are not scaled (the `fix_head_stem` of Google's Lite models).

    >>> len(scaled_blocks(1.0, 1.0)), len(scaled_blocks(1.0, 1.1))
    (16, 21)
    """
    blocks = []
    for stage, (repeats, first) in enumerate(STAGES):
        if 0 < stage < len(STAGES) - 1:
            repeats = math.ceil(repeats * depth)
        first = first._replace(features=_round_channels(first.features * width))
        blocks += [first, *[first._replace(strides=1)] * (repeats - 1)]
    return tuple(blocks)


def _round_channels(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class ConvNorm(nn.Module):
    """Convolution, norm, ReLU6: the stem and the top."""

    features: int
    kernel_size: int
    strides: int
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(self.features, self.kernel_size, self.strides, "SAME", dtype=self.dtype, name="conv")(x)
        norm = BatchNorm(momentum=self.momentum, epsilon=1e-3, dtype=self.dtype, name="norm")
        return nn.relu6(norm(x, train=train))


class InvertedBottleneck(nn.Module):
    """Expand (1x1), filter each channel, project (1x1); with a shortcut where the shape stays.

    `drop_path` is this block's own rate of `stochastic_depth`; without a shortcut it means nothing.
    """

    block: Block
    momentum: float
    dtype: Any
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = partial(Conv, padding="SAME", dtype=self.dtype)
        norm = partial(BatchNorm, momentum=self.momentum, epsilon=1e-3, dtype=self.dtype)
        kernel_size, strides, expansion, features = self.block
        y, width = x, x.shape[-1] * expansion
        if expansion > 1:
            y = conv(width, 1, name="expand_conv")(y)
            y = nn.relu6(norm(name="expand_norm")(y, train=train))
        y = conv(width, kernel_size, strides, groups=width, name="depthwise_conv")(y)
        y = nn.relu6(norm(name="depthwise_norm")(y, train=train))
        y = conv(features, 1, name="project_conv")(y)
        y = norm(name="project_norm")(y, train=train)
        if strides > 1 or x.shape[-1] != features:
            return y
        return x + stochastic_depth(y, self.drop_path, train)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its head: normalised floats (B, H, W, channels) to (B, H/32, W/32, 1280).

    `width` and `depth` scale the blocks, not the stem and the top. TensorFlow's padding and norm epsilon
    1e-3, as the published weights need. `momentum` of the running statistics is TensorFlow's .99; .9 follows
    a short training faster. `dtype` is the type of the computation (parameters and statistics stay float32).
    `drop_path` is the last block's rate of `stochastic_depth` (rng "dropout").
    """

    width: float = 1.0
    depth: float = 1.0
    momentum: float = 0.9
    dtype: Any = jnp.float32
    drop_path: float = 0.0

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks in order: "stem", "block0", "block1", ..., "top"."""
        blocks = range(len(scaled_blocks(self.width, self.depth)))
        return ("stem", *(f"block{i}" for i in blocks), "top")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in two groups, cut after 1/8 of the image as in ResNet."""
        blocks = scaled_blocks(self.width, self.depth)
        strided = [i for i, block in enumerate(blocks) if block.strides == 2]
        cut = 1 + strided[2]  # the stem comes first, and the third strided block leaves 1/16
        return self.block_names[:cut], self.block_names[cut:]

    @nn.compact
    def features(
        self, x: jax.Array, train: bool = False, *, after: str | None = None, until: str | None = None
    ) -> dict[str, jax.Array]:
        """Return outputs by block, for the blocks after `after` (whose output `x` then is) up to `until`.

        Raises ValueError for an unknown block.
        """
        conv_norm = partial(ConvNorm, momentum=self.momentum, dtype=self.dtype)
        blocks = scaled_blocks(self.width, self.depth)
        rates = drop_rates(self.drop_path, len(blocks))
        outputs = {}
        for name in select_blocks(self.block_names, after, until):
            if name == "stem":
                layer = conv_norm(32, 3, 2, name=name)
            elif name == "top":
                layer = conv_norm(1280, 1, 1, name=name)
            else:
                index = int(name.removeprefix("block"))
                layer = InvertedBottleneck(blocks[index], self.momentum, self.dtype, rates[index], name=name)
            outputs[name] = x = layer(x, train)
        return outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.features(x, train)["top"]


efficientnet_lite0 = partial(EfficientNetLite, width=1.0, depth=1.0)
efficientnet_lite1 = partial(EfficientNetLite, width=1.0, depth=1.1)
efficientnet_lite2 = partial(EfficientNetLite, width=1.1, depth=1.2)
