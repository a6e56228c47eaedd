"""DenseNet 121 to 201 (Huang et al. 2016, https://arxiv.org/abs/1608.06993) in torchvision's layout.

Where a ResNet adds a block's output to its input, a DenseNet concatenates the two.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.kernels import max_pool
from jaxfast.models.layers import BatchNorm, Conv, check_halves, select_blocks

_Conv = partial(Conv, kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"))


class DenseStem(nn.Module):
    """7x7 convolution of stride 2, norm, ReLU; (B, H, W, channels) to (B, H/2, W/2, width)."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = _Conv(self.width, 7, 2, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))


class DenseLayer(nn.Module):
    """`growth` new channels beside the given ones: norm, ReLU, 1x1 to 4 x growth, norm, ReLU, 3x3."""

    growth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        y = nn.relu(norm(name="norm1")(x, train=train))
        y = _Conv(4 * self.growth, 1, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(norm(name="norm2")(y, train=train))
        y = _Conv(self.growth, 3, dtype=self.dtype, name="conv2")(y)
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Half the channels at half the size: norm, ReLU, 1x1, average pooling."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_halves(x, "a DenseNet", 29)
        channels = x.shape[-1] // 2
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        x = _Conv(channels, 1, dtype=self.dtype, name="conv")(x)
        return nn.avg_pool(x, (2, 2), (2, 2))


class Top(nn.Module):
    """The last norm, and the ReLU that torchvision leaves to the classifier."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))


class DenseNet(nn.Module):
    """A DenseNet without its head: (B, H, W, channels), normalised floats, to (B, H/32, W/32, features).

    `stage_sizes` are the layers of each dense block, `growth` the channels that each adds, `width` those of the stem,
    `dtype` the type of the computation (parameters and statistics stay float32). ValueError for images so small that
    nothing is left to halve.
    """

    stage_sizes: tuple[int, ...]
    growth: int = 32
    width: int = 64
    dtype: Any = jnp.float32

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks in order: "stem", "block1_0", ..., "transition1", "block2_0", ..., "top"."""
        names = ["stem"]
        for stage, size in enumerate(self.stage_sizes, start=1):
            names += [f"transition{stage - 1}"] if stage > 1 else []
            names += [f"block{stage}_{i}" for i in range(size)]
        return (*names, "top")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in two groups, cut where fastai's `_densenet_split` cuts."""
        stages = range(1, len(self.stage_sizes) + 1)
        parts = ["stem", *(name for i in stages for name in (f"block{i}", f"transition{i}"))]
        parts[-1] = "top"
        return tuple(parts[:4]), tuple(parts[4:])

    @nn.compact
    def features(
        self, x: jax.Array, train: bool = False, *, after: str | None = None, until: str | None = None
    ) -> dict[str, jax.Array]:
        """Return outputs by block, for the blocks after `after` (whose output `x` then is) up to `until`.

        The max pooling after the stem counts to "block1_0", a transition's average pooling to the transition: the last
        layer of a dense block gives the last map of its size. Raises ValueError for an unknown block.
        """
        outputs = {}
        for name in select_blocks(self.block_names, after, until):
            if name == "stem":
                layer = DenseStem(self.width, self.dtype, name=name)
            elif name == "top":
                layer = Top(self.dtype, name=name)
            elif name.startswith("transition"):
                layer = Transition(self.dtype, name=name)
            else:
                layer = DenseLayer(self.growth, self.dtype, name=name)
                if name == "block1_0":
                    x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
            outputs[name] = x = layer(x, train)
        return outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.features(x, train)["top"]


densenet121 = partial(DenseNet, (6, 12, 24, 16))
densenet161 = partial(DenseNet, (6, 12, 36, 24), 48, 96)
densenet169 = partial(DenseNet, (6, 12, 32, 32))
densenet201 = partial(DenseNet, (6, 12, 48, 32))
