"""ResNet 18 to 152 (He et al. 2015) in torchvision's layout: v1.5, the stride sits on the 3x3 convolution."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.kernels import max_pool
from jaxfast.models.layers import BatchNorm, Conv, drop_rates, select_blocks, stochastic_depth

# ImageNet's statistics in 0..255 units, under which torchvision's and timm's weights were trained
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class Stem(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU; (B, H, W, channels) to (B, H/2, W/2, width). `small`: 3x3, stride 1."""

    width: int
    dtype: Any = jnp.float32
    small: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        kernel_size, strides = (3, 1) if self.small else (7, 2)
        x = Conv(self.width, kernel_size, strides, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the last norm's scale starts at zero.

    `drop_path` is this block's own rate of `stochastic_depth`.
    """

    width: int
    strides: int = 1
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = partial(Conv, self.width, 3, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        y = conv(strides=self.strides, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = conv(name="conv2")(y)
        y = norm(scale_init=nn.initializers.zeros, name="norm2")(y, train=train)
        y = stochastic_depth(y, self.drop_path, train)
        return nn.relu(y + _shortcut(x, y.shape[-1], self.strides, train, self.dtype))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution (to 4 x width) beside a shortcut; the last norm's scale starts at zero.

    `drop_path` is this block's own rate of `stochastic_depth`.
    """

    width: int
    strides: int = 1
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)
        y = conv(self.width, 1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train=train))
        y = conv(self.width, 3, self.strides, name="conv2")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = conv(self.width * self.expansion, 1, name="conv3")(y)
        y = norm(scale_init=nn.initializers.zeros, name="norm3")(y, train=train)
        y = stochastic_depth(y, self.drop_path, train)
        return nn.relu(y + _shortcut(x, y.shape[-1], self.strides, train, self.dtype))


def _shortcut(x: jax.Array, channels: int, strides: int, train: bool, dtype: Any) -> jax.Array:
    """The block's input, projected where the shape changes by layers that belong to the calling block."""
    if strides == 1 and x.shape[-1] == channels:
        return x
    x = Conv(channels, 1, strides, dtype=dtype, name="shortcut_conv")(x)
    return BatchNorm(dtype=dtype, name="shortcut_norm")(x, train=train)


class ResNet(nn.Module):
    """A ResNet without its head: (B, H, W, channels), normalised floats, to (B, H/32, W/32, features).

    `stage_sizes` are the blocks of each stage, `block` is BasicBlock or Bottleneck, `width` the channels of
    the first stage, `dtype` the type of the computation (parameters and statistics stay float32). `small_stem` is for
    images of about 32 pixels: a 3x3 stem and no pooling after it, both of stride 1 (He et al. 2015, section 4.2).
    `drop_path` is the last block's rate of `stochastic_depth` (rng "dropout").
    """

    stage_sizes: tuple[int, ...]
    block: Any
    width: int = 64
    dtype: Any = jnp.float32
    small_stem: bool = False
    drop_path: float = 0.0

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks in order: "stem", "layer1_0", "layer1_1", ..."""
        stages = enumerate(self.stage_sizes, start=1)
        return ("stem", *(f"layer{stage}_{i}" for stage, size in stages for i in range(size)))

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in two groups, cut where fastai's `_resnet_split` cuts."""
        layers = [f"layer{i + 1}" for i in range(len(self.stage_sizes))]
        half = len(layers) // 2
        return ("stem", *layers[:half]), tuple(layers[half:])

    @nn.compact
    def features(
        self, x: jax.Array, train: bool = False, *, after: str | None = None, until: str | None = None
    ) -> dict[str, jax.Array]:
        """Return outputs by block, for the blocks after `after` (whose output `x` then is) up to `until`.

        The max pooling after the stem counts to "layer1_0": the stem's output is the map at half size that a
        U-Net wants. Raises ValueError for an unknown block.
        """
        rates = dict(zip(self.block_names[1:], drop_rates(self.drop_path, sum(self.stage_sizes)), strict=True))
        outputs = {}
        for name in select_blocks(self.block_names, after, until):
            if name == "stem":
                x = Stem(self.width, self.dtype, self.small_stem, name=name)(x, train)
            else:
                stage, index = (int(part) for part in name.removeprefix("layer").split("_"))
                if name == "layer1_0" and not self.small_stem:
                    x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
                strides = 2 if stage > 1 and index == 0 else 1
                width = self.width * 2 ** (stage - 1)
                x = self.block(width, strides, self.dtype, rates[name], name=name)(x, train)
            outputs[name] = x
        return outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.features(x, train)[self.block_names[-1]]


resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
resnet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
resnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck)
resnet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck)
resnet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck)
