"""xResNet 18 to 101: ResNet with the "bag of tricks" (He et al. 2018, https://arxiv.org/abs/1812.01187), as fastai's.

timm calls the same networks resnet18d to resnet101d.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.kernels import max_pool
from jaxfast.models.attention import SimpleSelfAttention, SqueezeExcite
from jaxfast.models.layers import BatchNorm, Conv, drop_rates, select_blocks, stochastic_depth

# fastai's init_cnn
_Conv = partial(Conv, kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "normal"))


class XStem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2; (B, H, W, channels) to (B, H/2, W/2, width)."""

    width: int
    activation: Callable
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, (width, strides) in enumerate(((self.width // 2, 2), (self.width // 2, 1), (self.width, 1)), start=1):
            x = _Conv(width, 3, strides, dtype=self.dtype, name=f"conv{i}")(x)
            x = self.activation(BatchNorm(dtype=self.dtype, name=f"norm{i}")(x, train=train))
        return x


class XBlock(nn.Module):
    """A ResNet's block whose shortcut is average pooling, then a 1x1 convolution (fastai's ResBlock).

    `expansion` 1: two 3x3 convolutions; 4: a bottleneck. The last norm's scale starts at zero. What `squeeze_excite`
    and `attention` add is named by its place after the convolutions: "se4", "attention5". `drop_path` is this block's
    own rate.
    """

    width: int
    expansion: int
    strides: int
    activation: Callable
    squeeze_excite: int
    attention: bool
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(BatchNorm, dtype=self.dtype)
        channels = self.width * self.expansion
        plan = [(self.width, 3, self.strides), (channels, 3, 1)]
        if self.expansion > 1:
            plan = [(self.width, 1, 1), (self.width, 3, self.strides), (channels, 1, 1)]
        y = x
        for place, (features, kernel_size, strides) in enumerate(plan, start=1):
            last = place == len(plan)
            y = _Conv(features, kernel_size, strides, dtype=self.dtype, name=f"conv{place}")(y)
            scale_init = nn.initializers.zeros if last else nn.initializers.ones
            y = norm(scale_init=scale_init, name=f"norm{place}")(y, train=train)
            y = y if last else self.activation(y)
        if self.squeeze_excite:
            place += 1
            y = SqueezeExcite(self.squeeze_excite, self.activation, self.dtype, name=f"se{place}")(y)
        if self.attention:
            y = SimpleSelfAttention(self.dtype, name=f"attention{place + 1}")(y, train)
        y = stochastic_depth(y, self.drop_path, train)

        if self.strides > 1:  # torch's ceil mode: a last odd row counts alone
            x = nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)
        if x.shape[-1] != channels:
            x = _Conv(channels, 1, dtype=self.dtype, name="shortcut_conv")(x)
            x = norm(name="shortcut_norm")(x, train=train)
        return self.activation(y + x)


class XResNet(nn.Module):
    """An xResNet without its head: (B, H, W, channels), normalised floats, to (B, H/32, W/32, features).

    `stage_sizes` are the blocks of each stage, `expansion` is 1 or 4 (bottlenecks), `width` the channels of the stem
    and of the first stage. Options: `activation` such as `jax.nn.mish` (Misra 2019), `squeeze_excite` the reduction of
    `SqueezeExcite` in every block (fastai's is 16; 0: none), `attention` a `SimpleSelfAttention` in the last block of
    the first stage (fastai's `sa`), `drop_path` the last block's rate of `stochastic_depth` (rng "dropout"). `dtype`
    is the type of the computation (parameters and statistics stay float32).
    """

    stage_sizes: tuple[int, ...]
    expansion: int
    width: int = 64
    activation: Callable = nn.relu
    squeeze_excite: int = 0
    attention: bool = False
    drop_path: float = 0.0
    dtype: Any = jnp.float32

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks in order: "stem", "layer1_0", "layer1_1", ..."""
        stages = enumerate(self.stage_sizes, start=1)
        return ("stem", *(f"layer{stage}_{i}" for stage, size in stages for i in range(size)))

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in two groups, cut where fastai's `_xresnet_split` cuts."""
        return ("stem",), tuple(f"layer{i + 1}" for i in range(len(self.stage_sizes)))

    @nn.compact
    def features(
        self, x: jax.Array, train: bool = False, *, after: str | None = None, until: str | None = None
    ) -> dict[str, jax.Array]:
        """Return outputs by block, for the blocks after `after` (whose output `x` then is) up to `until`.

        The max pooling after the stem counts to "layer1_0", as in `ResNet`. Raises ValueError for an unknown block.
        """
        rates = dict(zip(self.block_names[1:], drop_rates(self.drop_path, sum(self.stage_sizes)), strict=True))
        outputs = {}
        for name in select_blocks(self.block_names, after, until):
            if name == "stem":
                x = XStem(self.width, self.activation, self.dtype, name=name)(x, train)
            else:
                stage, index = (int(part) for part in name.removeprefix("layer").split("_"))
                if name == "layer1_0":
                    x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
                x = XBlock(
                    width=self.width * 2 ** (stage - 1),
                    expansion=self.expansion,
                    strides=2 if stage > 1 and index == 0 else 1,
                    activation=self.activation,
                    squeeze_excite=self.squeeze_excite,
                    attention=self.attention and stage == 1 and index == self.stage_sizes[0] - 1,
                    drop_path=rates[name],
                    dtype=self.dtype,
                    name=name,
                )(x, train)
            outputs[name] = x
        return outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.features(x, train)[self.block_names[-1]]


xresnet18 = partial(XResNet, (2, 2, 2, 2), 1)
xresnet34 = partial(XResNet, (3, 4, 6, 3), 1)
xresnet50 = partial(XResNet, (3, 4, 6, 3), 4)
xresnet101 = partial(XResNet, (3, 4, 23, 3), 4)
