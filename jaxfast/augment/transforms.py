"""The transforms of a training batch and of a validation batch: one resample and one colour map per image.

The geometry of flip, rotation, zoom, warp and crop is one 3x3 matrix per image and so costs one resample;
brightness and contrast are one map of the pixel values. Defaults and distributions are those of fastai's
`aug_transforms`. A mask or key-points move by the matrix of their image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxfast.augment.erasing import noisy, rectangle
from jaxfast.augment.geometry import (
    flip_matrix,
    matmul,
    move_points,
    resample,
    resample_mask,
    rotate_matrix,
    turn_matrix,
    warp_matrix,
    zoom_matrix,
)

Batch = Mapping[str, Array]
Augment = Callable[[Array, Batch], dict[str, Array]]
Prepare = Callable[[Batch], dict[str, Array]]

TARGETS = (None, "mask", "points")
"""What of `batch["target"]` lies in the image: nothing, a class for every pixel, places."""

# One uniform number per image for each of these, always all of them: turning one transform off
# leaves what the others draw unchanged.
_DRAWS = (
    "flip", "rotate?", "rotate", "zoom?", "zoom", "zoom x", "zoom y",
    "warp x?", "warp x", "warp y?", "warp y", "crop x", "crop y",
    "brightness?", "brightness", "contrast?", "contrast",
    "erase?", "erase area", "erase aspect", "erase x", "erase y", "turn",
)  # fmt: skip


def image_augment(
    size: int | None = None,
    *,
    flip: float = 0.5,
    flip_vert: bool = False,
    rotate: float = 10.0,
    zoom: float = 1.1,
    lighting: float = 0.2,
    warp: float = 0.2,
    p_affine: float = 0.75,
    p_lighting: float = 0.75,
    erase: float = 0.0,
    target: str | None = None,
) -> ImageAugment:
    """Return `augment(key, batch)`, which gives every image of a batch its own random changes.

    `batch["image"]` is uint8 or float in 0..255, (B, H, W, C); it comes back as float32 in 0..255,
    (B, size, size, C): a random crop of `size` pixels, or (B, H, W, C) where `size` is None. Every other
    entry is passed on untouched. Row i depends on the key and on i alone, however the batch is split.

    `target`: what of `batch["target"]` lies in the image and moves with it. "mask": classes (B, H, W), read at the
    nearest pixel where the image is read, so that none is invented, and mirrored where the image is; "points": (x, y)
    in -1..1 over the image, (B, k, 2), moved exactly, out of -1..1 where they leave the picture. The data that
    `vision.from_...` makes sets it.

    The distributions are those of fastai's `aug_transforms`: `flip` is the chance of a mirror image, and with
    `flip_vert` any quarter turn is as likely as none, so that all eight symmetries of a square occur (pictures
    without an upright side: from above, of parts); `rotate` the largest angle in degrees, either way; `zoom` the
    largest magnification, about a random point; `warp` the largest tilt (see `warp_matrix`); each of these three
    happens with chance `p_affine`. `lighting` is the largest change of brightness and of contrast (see `relight`),
    each with chance `p_lighting`. `erase` is the chance that a rectangle of up to 30 % of the image is replaced by
    noise (`random_erasing`, which has more settings).

    Raises ValueError for a setting out of its range, for images smaller than `size`, and targets of other shapes.
    """
    if size is not None and size < 2:
        raise ValueError(f"size is {size}: give at least 2 pixels, or None to keep the size of the images")
    for name, value, low, high in (
        ("flip", flip, 0, 1),
        ("rotate", rotate, 0, 180),
        ("zoom", zoom, 1, 10),
        ("lighting", lighting, 0, 0.99),
        ("warp", warp, 0, 0.35),
        ("p_affine", p_affine, 0, 1),
        ("p_lighting", p_lighting, 0, 1),
        ("erase", erase, 0, 1),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}: give a number from {low} to {high}")
    _check_target(target)
    return ImageAugment(size, flip, flip_vert, rotate, zoom, lighting, warp, p_affine, p_lighting, erase, target)


@dataclasses.dataclass(frozen=True)
class ImageAugment:
    """See `image_augment`; `dataclasses.replace` gives the same changes at another size."""

    size: int | None
    flip: float
    flip_vert: bool
    rotate: float
    zoom: float
    lighting: float
    warp: float
    p_affine: float
    p_lighting: float
    erase: float
    target: str | None

    def __call__(self, key: Array, batch: Batch) -> dict[str, Array]:
        images = _images(batch, self.size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
        targets = _targets(batch, self.target)
        images, targets = jax.vmap(self._one)(keys, images, targets)
        return {**batch, "image": images} | ({} if targets is None else {"target": targets})

    def _one(self, key: Array, image: Array, target: Array | None) -> tuple[Array, Array | None]:
        draw = dict(zip(_DRAWS, jax.random.uniform(key, (len(_DRAWS),), jnp.float32), strict=True))
        height, width = image.shape[:2]
        size = (height, width) if self.size is None else (self.size, self.size)
        matrix = self._matrix(draw, size)
        corner = _place(draw["crop x"], width - size[1]), _place(draw["crop y"], height - size[0])
        image = resample(image, matrix, size, *corner)
        if target is not None and self.target == "mask":
            target = resample_mask(target, matrix, size, *corner)
        elif target is not None:
            target = move_points(target, matrix, (height, width), size, *corner)
        if self.lighting:
            brightness = 0.5 + _signed(draw, "brightness", self.lighting / 2, self.p_lighting)
            contrast = jnp.exp(_signed(draw, "contrast", math.log1p(-self.lighting), self.p_lighting))
            image = relight(image, brightness, contrast)
        if self.erase:
            places = (draw[f"erase {name}"] for name in ("aspect", "x", "y"))
            inside = rectangle(size, 0.3 * draw["erase area"], *places)
            image = noisy(jax.random.fold_in(key, 1), image, inside & (draw["erase?"] < self.erase))
        return image, target

    def _matrix(self, draw: dict[str, Array], size: tuple[int, int]) -> Array:
        height, width = size
        half = (width - 1) / 2, (height - 1) / 2
        if self.flip_vert and height != width:
            raise ValueError(f"flip_vert turns square images, these are {height}x{width}: give a size")
        signed = lambda name, largest: _signed(draw, name, largest, self.p_affine)
        matrix = warp_matrix(signed("warp x", self.warp), signed("warp y", self.warp), half)
        factor = jnp.where(draw["zoom?"] < self.p_affine, 1 + (self.zoom - 1) * draw["zoom"], 1.0)
        turns = jnp.floor(4 * draw["turn"]) if self.flip_vert else 0.0
        for step in (
            flip_matrix(draw["flip"] < self.flip),
            turn_matrix(turns),
            rotate_matrix(signed("rotate", self.rotate)),
            zoom_matrix(factor, 2 * draw["zoom x"] - 1, 2 * draw["zoom y"] - 1, half),
        ):
            matrix = matmul(matrix, step)
        return matrix


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """See `center_crop`; with a key as well, as training calls it, it does the same."""

    size: int
    target: str | None

    def __call__(self, *key_and_batch) -> dict[str, Array]:
        batch = key_and_batch[-1]
        images, targets = _images(batch, self.size), _targets(batch, self.target)
        (height, width), size = images.shape[1:3], self.size
        top, left = (height - size) // 2, (width - size) // 2
        batch = {**batch, "image": images[:, top : top + size, left : left + size]}
        if targets is not None and self.target == "mask":
            batch["target"] = targets[:, top : top + size, left : left + size]
        elif targets is not None:
            move = lambda points: move_points(points, jnp.eye(3), (height, width), (size, size), left, top)
            batch["target"] = jax.vmap(move)(targets)
        return batch


def center_crop(size: int, *, target: str | None = None) -> CenterCrop:
    """Return `prepare(batch)`, which cuts the middle `size` by `size` pixels out of `batch["image"]`.

    (B, H, W, C) of any dtype to (B, size, size, C) of the same; `target` as in `image_augment`, the other entries are
    passed on untouched. Raises ValueError for images smaller than `size`.
    """
    _check_target(target)
    return CenterCrop(size, target)


def relight(image: Array, brightness: Array | float, contrast: Array | float) -> Array:
    """Change brightness (0.5: none) and contrast (1: none) of an image in 0..255, in the space of logits.

    sigmoid(contrast * (logit(image / 255) + logit(brightness))); exactly the image where there is no change.
    Source: fastai's `Brightness` and `Contrast`, which draw from 0.5 (1 - lighting) .. 0.5 (1 + lighting)
    and, evenly in its logarithm, from 1 - lighting .. 1 / (1 - lighting).
    """
    share = jnp.clip(image.astype(jnp.float32) / 255, 1e-7, 1 - 1e-7)
    shift = jnp.log(brightness) - jnp.log1p(-brightness)
    changed = 255 / (1 + jnp.exp(contrast * (jnp.log((1 - share) / share) - shift)))  # one log, one exp a pixel
    return jnp.where((brightness == 0.5) & (contrast == 1), image, changed)


def _signed(draw: dict[str, Array], name: str, largest: float, p: float) -> Array:
    """With chance `p` a number from -`largest` to `largest`, else 0."""
    return jnp.where(draw[name + "?"] < p, largest * (2 * draw[name] - 1), 0.0)


def _place(draw: Array, room: int) -> Array:
    """A whole number from 0 to `room`; the product can round up to room + 1."""
    return jnp.minimum(jnp.floor(draw * (room + 1)), room)


def _images(batch: Batch, size: int | None) -> Array:
    if "image" not in batch:
        raise ValueError(f"the batch has no entry 'image', only {sorted(batch)}")
    images = batch["image"]
    if images.ndim != 4:
        raise ValueError(f"images have the shape {images.shape}: give (batch, height, width, channels)")
    if min(images.shape[1:3]) < (size or 2):
        raise ValueError(
            f"images of {images.shape[1]}x{images.shape[2]} pixels are smaller than the size {size or 2}: "
            "presize them larger, or ask for a smaller size"
        )
    return images


def _targets(batch: Batch, target: str | None) -> Array | None:
    """The targets that lie in the images, None where nothing does."""
    if target is None or "target" not in batch:
        return None
    targets, shape = batch["target"], batch["image"].shape
    if target == "mask" and targets.shape != shape[:3]:
        raise ValueError(f"masks of shape {targets.shape} for images of shape {shape}: give (batch, height, width)")
    if target == "points" and (targets.ndim != 3 or targets.shape[-1] != 2):
        raise ValueError(f"points of shape {targets.shape}: give (batch, points, 2)")
    return targets


def _check_target(target: str | None) -> None:
    if target not in TARGETS:
        raise ValueError(f"target={target!r}: give 'mask' or 'points' for what moves with the image, else None")
