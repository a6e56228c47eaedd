"""Random erasing: rectangles of an image replaced by noise (Zhong et al. 2017; fastai's `RandomErasing`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

Batch = Mapping[str, Array]


def random_erasing(
    p: float = 0.5, *, sl: float = 0.0, sh: float = 0.3, min_aspect: float = 0.3, max_count: int = 1
) -> Callable[[Array, Batch], dict[str, Array]]:
    """Return `erase(key, batch)`, which with chance `p` puts noise into rectangles of each image of `batch["image"]`.

    Images (B, H, W, C) in 0..255 come back as float32; the other entries, masks and key-points too, are passed on
    untouched. One to `max_count` rectangles cover between them up to the share `sh` of the image, at least `sl`, with
    heights of `min_aspect` to 1 / `min_aspect` times their widths; the noise has the mean and the spread of the image.
    Follow the other transforms with it: `mix.compose(data.augment, random_erasing())`; `image_augment(erase=p)` is the
    same with these defaults, fastai's, in one go. fastai draws one set of rectangles for a batch, this one for each
    image. Raises ValueError for settings out of range.
    """
    for name, value, low, high in (
        ("p", p, 0, 1), ("sl", sl, 0, sh), ("sh", sh, sl, 1), ("min_aspect", min_aspect, 0.01, 1),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}: give a number from {low} to {high}")
    if isinstance(max_count, bool) or max_count != int(max_count) or not 1 <= max_count <= 100:
        raise ValueError(f"max_count is {max_count}: give a whole number from 1 to 100")

    def one(key: Array, image: Array) -> Array:
        draw = jax.random.uniform(jax.random.fold_in(key, 0), (2 + 4 * max_count,), jnp.float32)
        count = 1 + jnp.minimum(jnp.floor(draw[1] * max_count), max_count - 1)
        inside = jnp.zeros(image.shape[:2], bool)
        for i in range(max_count):
            area, aspect, x, y = draw[2 + 4 * i : 6 + 4 * i]
            box = rectangle(image.shape[:2], (sl + (sh - sl) * area) / count, aspect, x, y, min_aspect)
            inside |= box & (i < count)
        return noisy(jax.random.fold_in(key, 1), image, inside & (draw[0] < p))

    def erase(key: Array, batch: Batch) -> dict[str, Array]:
        images = batch["image"].astype(jnp.float32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
        return {**batch, "image": jax.vmap(one)(keys, images)}

    return erase


def rectangle(
    extent: tuple[int, int], share: Array, aspect: Array, x: Array, y: Array, min_aspect: float = 0.3
) -> Array:
    """Which pixels (H, W) a rectangle of the `share` of them covers; `aspect`, `x` and `y` are draws from 0..1."""
    height, width = extent
    area = share * height * width
    ratio = jnp.exp(math.log(min_aspect) * (2 * aspect - 1))

    def span(length, position, size):
        length = jnp.round(jnp.sqrt(length))
        start = jnp.floor(position * (jnp.maximum(size - length, 0) + 1))
        index = jnp.arange(size)
        return (index >= start) & (index < start + length)

    return span(area * ratio, y, height)[:, None] & span(area / ratio, x, width)


def noisy(key: Array, image: Array, inside: Array) -> Array:
    """An image (H, W, C) with noise of its own mean and spread `inside` (fastai: N(0, 1) after normalising)."""
    noise = image.mean((0, 1)) + image.std((0, 1)) * jax.random.normal(key, image.shape, jnp.float32)
    return jnp.where(inside[..., None], jnp.clip(noise, 0, 255), image)
