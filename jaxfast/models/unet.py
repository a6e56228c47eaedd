"""U-Net over any body: fastai's DynamicUnet (after Ronneberger et al. 2015)."""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.classifier import body_and_head, normalized
from jaxfast.models.layers import BatchNorm, Conv, select_blocks
from jaxfast.models.self_attention import SelfAttention
from jaxfast.models.upsample import PixelShuffle, nearest


class DynamicUnet(nn.Module):
    """A value per pixel and output: images (B, H, W, channels), uint8 or floats in 0..255, to float32 (B, H, W, n_out).

    `body` is any with `features`, `block_names`, `groups` and `dtype`, such as `ResNet`; its last block at each size
    goes to the way back up. `mean` and `std` as in `ImageClassifier`. `blur`: after each doubling of the size, at the
    last block too with `blur_final`. `self_attention`: in the third block from the end. `y_range`: a sigmoid between
    these two numbers. `last_cross`: the image itself is seen once more, by a residual block, which `bottleneck` makes
    half as wide inside (fastai v1's meaning; v2's `bottle=True` fails). `last`: the body's last block that is used, and
    has parameters; those that only widen the map for a classifier, as EfficientNet's "top" does, make a U-Net ten times
    larger. Variables lie under "body" and "head".

    Defaults and structure are fastai 2's, without norm in the convolutions of the head as there. Raises ValueError for
    images that are too small for the body, and for a body that has no `features` or keeps the size.

    >>> from jaxfast.models.resnet import MEAN, STD, resnet34
    >>> model = DynamicUnet(resnet34(), 12, MEAN, STD)
    >>> shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 180, 240, 3), jnp.uint8))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))  # fastai 2.8's has as many
    41222168
    """

    body: nn.Module
    n_out: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    blur: bool = False
    blur_final: bool = True
    self_attention: bool = False
    y_range: tuple[float, float] | None = None
    last_cross: bool = True
    bottleneck: bool = False
    last: str | None = None

    def setup(self):
        if not callable(getattr(self.body, "features", None)):
            name = type(self.body).__name__
            raise ValueError(f"a U-Net needs the maps of its body at every size, and {name} has no method `features`")
        self.head = UnetHead(
            self.n_out,
            self.blur,
            self.blur_final,
            self.self_attention,
            self.y_range,
            self.last_cross,
            self.bottleneck,
            self.body.dtype,
        )

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of the parameters' paths in groups, one rate each: two of the body, then the head."""
        return body_and_head(self.body)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return self.head(*self.head_inputs(images, train), train)

    def head_inputs(self, images: jax.Array, train: bool = False) -> tuple[tuple[jax.Array, ...], jax.Array]:
        """What the head takes: the body's maps, the largest first, and the images that the body sees."""
        name = type(self.body).__name__
        x = normalized(images, self.mean, self.std, self.body.dtype)
        blocks, reduction = pyramid(self.body.clone(parent=None, name=None), x.shape[-1], self.last)
        if len(blocks) < 2:
            raise ValueError(f"{name} has maps of one size only: a U-Net needs a body that reduces the image")
        height, width = x.shape[1:3]
        if min(height, width) < reduction:
            raise ValueError(
                f"images of {height}x{width} pixels are too small for {name}, which makes them {reduction} times "
                f"smaller: give at least {reduction} pixels a side"
            )
        outputs = self.body.features(x, train, until=self.last)
        return tuple(outputs[block] for block in blocks), x


@cache
def pyramid(body: nn.Module, channels: int, last: str | None = None) -> tuple[tuple[str, ...], int]:
    """(the last block at each size up to the block `last`, the largest size first; how many times smaller than the
    image its map is).

    They do not depend on the image, in whose smallest maps two sizes can fall together.
    """
    side = 512

    def features():
        image = jnp.zeros((1, side, side, channels), body.dtype)
        return body.init_with_output(jax.random.key(0), image, until=last, method="features")[0]

    shapes = jax.eval_shape(features)
    names = select_blocks(body.block_names, None, last)
    sizes = [shapes[name].shape[1:3] for name in names]
    ends = zip(names, sizes, [*sizes[1:], None], strict=True)
    return tuple(name for name, size, following in ends if size != following), side // sizes[-1][0]


_kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class UnetBlock(nn.Module):
    """The map from below, doubled by "shuffle", beside the normed map `skip` of the body ("norm"); two convolutions.

    (B, h, w, c) and (B, H, W, s) to (B, H, W, c / 2 + s), half of these with `halve`. Source: fastai's UnetBlock.
    """

    blur: bool
    attend: bool
    halve: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool = False) -> jax.Array:
        x = PixelShuffle(x.shape[-1] // 2, self.blur, self.dtype, name="shuffle")(x)
        x = nearest(x, skip.shape[1:3])
        skip = BatchNorm(dtype=self.dtype, name="norm")(skip, train=train)
        x = nn.relu(jnp.concatenate([x, skip], axis=-1))
        features = x.shape[-1] // 2 if self.halve else x.shape[-1]
        conv = partial(Conv, features, 3, use_bias=True, dtype=self.dtype, kernel_init=_kaiming)
        x = nn.relu(conv(name="conv1")(x))
        x = nn.relu(conv(name="conv2")(x))
        return SelfAttention(self.dtype, name="attention")(x, train) if self.attend else x


class UnetHead(nn.Module):
    """From a body's maps, the largest first, and the normalised images to one value per pixel and output, in float32.

    Layers "norm", "middle1", "middle2", "block0" (at the smallest skip), "block1", ..., "shuffle" where the largest map
    is smaller than the image, "cross1" and "cross2", "output". Raises ValueError for self-attention with fewer than
    three blocks.
    """

    n_out: int
    blur: bool = False
    blur_final: bool = True
    self_attention: bool = False
    y_range: tuple[float, float] | None = None
    last_cross: bool = True
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], images: jax.Array, train: bool = False) -> jax.Array:
        *skips, x = maps
        if self.self_attention and len(skips) < 3:
            raise ValueError(
                f"self_attention sits in the third block from the end, and this body makes {len(skips)}: leave it out"
            )
        conv = partial(Conv, use_bias=True, dtype=self.dtype, kernel_init=_kaiming)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        x = nn.relu(conv(2 * x.shape[-1], 3, name="middle1")(x))
        x = nn.relu(conv(x.shape[-1] // 2, 3, name="middle2")(x))
        for i, skip in enumerate(reversed(skips)):
            left = len(skips) - 1 - i
            blur = self.blur and (left > 0 or self.blur_final)
            attend = self.self_attention and left == 2
            x = UnetBlock(blur, attend, left == 0, self.dtype, name=f"block{i}")(x, skip, train)
        if x.shape[1:3] != images.shape[1:3]:
            x = PixelShuffle(x.shape[-1], dtype=self.dtype, name="shuffle")(x)
            x = nearest(x, images.shape[1:3])
        if self.last_cross:
            x = jnp.concatenate([x, images.astype(self.dtype)], axis=-1)
            inner = x.shape[-1] // 2 if self.bottleneck else x.shape[-1]
            y = nn.relu(conv(inner, 3, name="cross1")(x))
            x = nn.relu(x + conv(x.shape[-1], 3, name="cross2")(y))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        x = Conv(self.n_out, 1, use_bias=True, dtype=wide, kernel_init=uniform, name="output")(x)
        if self.y_range is not None:
            low, high = self.y_range
            x = low + (high - low) * jax.nn.sigmoid(x)
        return x
