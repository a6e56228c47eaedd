"""VGG 16 and 19 (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556), with and without batch norm."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxfast.kernels import max_pool
from jaxfast.models.layers import BatchNorm, Conv, check_halves, select_blocks


def torch_indices(stage_sizes: tuple[int, ...], batch_norm: bool) -> dict[str, int]:
    """Return where each block's convolution stands in the `features` of torchvision.

    There a convolution, its norm, its ReLU and each max pooling count one.

    >>> torch_indices((2, 2), False), torch_indices((2, 1), True)["layer2_0"]
    ({'layer1_0': 0, 'layer1_1': 2, 'layer2_0': 5, 'layer2_1': 7}, 7)
    """
    indices, index = {}, 0
    for stage, size in enumerate(stage_sizes, start=1):
        for i in range(size):
            indices[f"layer{stage}_{i}"] = index
            index += 3 if batch_norm else 2
        index += 1
    return indices


class ConvBlock(nn.Module):
    """3x3 convolution with bias, norm if wished, ReLU."""

    width: int
    batch_norm: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = Conv(self.width, 3, use_bias=True, dtype=self.dtype, name="conv")(x)
        if self.batch_norm:
            x = BatchNorm(dtype=self.dtype, name="norm")(x, train=train)
        return nn.relu(x)


class VGG(nn.Module):
    """A VGG without its head: (B, H, W, channels), normalised floats, to (B, H/32, W/32, 8 x width).

    `stage_sizes` are the convolutions of each stage, `width` the channels of the first; they double, up to eight times
    `width`. `dtype` is the type of the computation (parameters and statistics stay float32). ValueError for images so
    small that nothing is left to halve.
    """

    stage_sizes: tuple[int, ...]
    batch_norm: bool = False
    width: int = 64
    dtype: Any = jnp.float32

    @property
    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks in order: "layer1_0", "layer1_1", "layer2_0", ..., "top", the last pooling."""
        return (*torch_indices(self.stage_sizes, self.batch_norm), "top")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in two groups, cut where fastai's `_vgg_split` cuts: torch's index 22."""
        indices = torch_indices(self.stage_sizes, self.batch_norm)
        early = [name for name, index in indices.items() if index < 22]
        return tuple(early), tuple(indices)[len(early) :]

    @nn.compact
    def features(
        self, x: jax.Array, train: bool = False, *, after: str | None = None, until: str | None = None
    ) -> dict[str, jax.Array]:
        """Return outputs by block, for the blocks after `after` (whose output `x` then is) up to `until`.

        A max pooling counts to the block after it. Raises ValueError for an unknown block.
        """
        outputs = {}
        for name in select_blocks(self.block_names, after, until):
            if name == "top" or name.endswith("_0") and name != "layer1_0":
                check_halves(x, "a VGG", 2 ** len(self.stage_sizes))
                x = max_pool(x, (2, 2), (2, 2), "VALID")
            if name != "top":
                stage = int(name.removeprefix("layer").split("_")[0])
                width = self.width * min(2 ** (stage - 1), 8)
                x = ConvBlock(width, self.batch_norm, self.dtype, name=name)(x, train)
            outputs[name] = x
        return outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.features(x, train)["top"]


class VGGHead(nn.Module):
    """VGG's own head: 7x7 places, flattened as torch does, into dense layers with ReLU and dropout between.

    (B, H, W, C) to logits (B, n_out), in float32 whatever the body computed in. A map of another size than 7x7 is
    brought to it by torch's AdaptiveAvgPool2d. Kernels start as N(0, .01). Layers dense0, dense1, dense2; rng
    "dropout".
    """

    n_out: int
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        rows, columns = (jnp.asarray(_bins(size), x.dtype) for size in x.shape[1:3])
        x = jnp.einsum("ih,bhwc,jw->bcij", rows, x, columns)
        x = x.reshape(len(x), -1)
        for i, width in enumerate((*self.hidden, self.n_out)):
            x = nn.Dense(width, dtype=x.dtype, kernel_init=nn.initializers.normal(0.01), name=f"dense{i}")(x)
            if i < len(self.hidden):
                x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return x


def _bins(size: int) -> np.ndarray:
    """(7, size): the share of each row in each of seven bins, which overlap where 7 does not divide `size`."""
    bins = np.zeros((7, size))
    for i in range(7):
        start, stop = i * size // 7, -(-(i + 1) * size // 7)
        bins[i, start:stop] = 1 / (stop - start)
    return bins


vgg16 = partial(VGG, (2, 2, 3, 3, 3))
vgg19 = partial(VGG, (2, 2, 4, 4, 4))
vgg16_bn = partial(VGG, (2, 2, 3, 3, 3), True)
vgg19_bn = partial(VGG, (2, 2, 4, 4, 4), True)
