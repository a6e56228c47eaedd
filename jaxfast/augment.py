"""Image augmentation on the device: pure functions of a key and a batch.

The geometry of flip, rotation, zoom, warp and crop is one 3x3 matrix per image and so costs one resample;
brightness and contrast are one map of the pixel values. Defaults and distributions are those of fastai's
`aug_transforms`.

A matrix takes an (x, y, 1) of the output to where the input is read. Both are in pixels from the centre of
the crop, x to the right and y down, so that the identity matrix reads every pixel at exactly its own place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

Batch = Mapping[str, Array]
Augment = Callable[[Array, Batch], dict[str, Array]]
Prepare = Callable[[Batch], dict[str, Array]]

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
) -> Augment:
    """Return `augment(key, batch)`, which gives every image of a batch its own random changes.

    `batch["image"]` is uint8 or float in 0..255, (B, H, W, C); it comes back as float32 in 0..255,
    (B, size, size, C): a random crop of `size` pixels, or (B, H, W, C) where `size` is None. Every other
    entry is passed on untouched. Row i depends on the key and on i alone, however the batch is split.

    The distributions are those of fastai's `aug_transforms`: `flip` is the chance of a mirror image, and with
    `flip_vert` any quarter turn is as likely as none, so that all eight symmetries of a square occur (pictures
    without an upright side: from above, of parts); `rotate` the largest angle in degrees, either way; `zoom` the
    largest magnification, about a random point; `warp` the largest tilt (see `warp_matrix`); each of these three
    happens with chance `p_affine`. `lighting` is the largest change of brightness and of contrast (see `relight`),
    each with chance `p_lighting`. `erase` is the chance that a rectangle of up to 30 % of the image is replaced by
    noise (fastai's `RandomErasing`; Zhong et al. 2017).

    Raises ValueError for a setting out of its range, and for images smaller than `size`.
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

    def one(key: Array, image: Array) -> Array:
        draw = dict(zip(_DRAWS, jax.random.uniform(key, (len(_DRAWS),), jnp.float32), strict=True))
        height, width = image.shape[:2]
        out_height, out_width = (height, width) if size is None else (size, size)
        half = (out_width - 1) / 2, (out_height - 1) / 2
        if flip_vert and out_height != out_width:
            raise ValueError(f"flip_vert turns square images, these are {out_height}x{out_width}: give a size")

        def signed(name, largest, p):
            return jnp.where(draw[name + "?"] < p, largest * (2 * draw[name] - 1), 0.0)

        matrix = warp_matrix(signed("warp x", warp, p_affine), signed("warp y", warp, p_affine), half)
        factor = jnp.where(draw["zoom?"] < p_affine, 1 + (zoom - 1) * draw["zoom"], 1.0)
        turns = jnp.floor(4 * draw["turn"]) if flip_vert else 0.0
        for step in (
            flip_matrix(draw["flip"] < flip),
            turn_matrix(turns),
            rotate_matrix(signed("rotate", rotate, p_affine)),
            zoom_matrix(factor, 2 * draw["zoom x"] - 1, 2 * draw["zoom y"] - 1, half),
        ):
            matrix = _matmul(matrix, step)
        left = _place(draw["crop x"], width - out_width)
        top = _place(draw["crop y"], height - out_height)
        image = resample(image, matrix, (out_height, out_width), left, top)
        if lighting:
            brightness = 0.5 + signed("brightness", lighting / 2, p_lighting)
            contrast = jnp.exp(signed("contrast", math.log1p(-lighting), p_lighting))
            image = relight(image, brightness, contrast)
        if erase:
            image = jnp.where(draw["erase?"] < erase, _erase(jax.random.fold_in(key, 1), image, draw), image)
        return image

    def augment(key: Array, batch: Batch) -> dict[str, Array]:
        images = _images(batch, size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
        return {**batch, "image": jax.vmap(one)(keys, images.astype(jnp.float32))}

    return augment


def center_crop(size: int) -> Prepare:
    """Return `prepare(batch)`, which cuts the middle `size` by `size` pixels out of `batch["image"]`.

    (B, H, W, C) of any dtype to (B, size, size, C) of the same; the other entries are passed on untouched.
    Raises ValueError for images smaller than `size`.
    """

    def prepare(batch: Batch) -> dict[str, Array]:
        images = _images(batch, size)
        top, left = ((extent - size) // 2 for extent in images.shape[1:3])
        return {**batch, "image": images[:, top : top + size, left : left + size]}

    return prepare


def resample(image: Array, matrix: Array, size: tuple[int, int], left: Array | int = 0, top: Array | int = 0) -> Array:
    """Read an image (H, W, C) through a 3x3 matrix, about the centre of the crop at (`left`, `top`).

    Returns float32 (size[0], size[1], C). Interpolation is bilinear. What lies outside of the image is its
    mirror image about the centres of the border pixels (torch's reflection padding with aligned corners).
    """
    height, width = size
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    # Half-integers and sums of few terms: exact in fp32 for the identity. Written out, since a matrix
    # product would run in bf16 on a TPU and in TF32 on a GPU.
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - center_x
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - center_y
    (a, b, c), (d, e, f), (g, h, i) = matrix
    depth = g * x + h * y + i
    read_x = (a * x + b * y + c) / depth + (center_x + left)
    read_y = (d * x + e * y + f) / depth + (center_y + top)
    plane = jax.vmap(lambda channel: map_coordinates(channel, (read_y, read_x), 1, mode="mirror"), -1, -1)
    return jnp.clip(plane(image.astype(jnp.float32)), 0, 255)


def flip_matrix(mirrored: Array | bool) -> Array:
    """Left and right change places where `mirrored` is true."""
    return _matrix((jnp.where(mirrored, -1, 1), 0, 0), (0, 1, 0), (0, 0, 1))


def turn_matrix(turns: Array | float) -> Array:
    """A rotation about the centre by `turns` (0, 1, 2, 3) quarters, which moves every pixel exactly onto another."""
    cos, sin = jnp.take(jnp.array([1.0, 0.0, -1.0, 0.0]), jnp.array([turns, turns + 3], int) % 4)
    return _matrix((cos, -sin, 0), (sin, cos, 0), (0, 0, 1))


def rotate_matrix(degrees: Array | float) -> Array:
    """A rotation of the picture about its centre, counter-clockwise to the eye for positive `degrees`."""
    angle = jnp.deg2rad(jnp.float32(degrees))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _matrix((cos, -sin, 0), (sin, cos, 0), (0, 0, 1))


def zoom_matrix(factor: Array | float, x: Array | float, y: Array | float, half: tuple[float, float]) -> Array:
    """A magnification by `factor`; `x` and `y` in -1..1 say which part stays in view (0, 0: the middle).

    `half` is the distance in pixels from the centre to the last column and row. Source: fastai's `zoom_mat`.
    """
    scale = 1 / factor
    return _matrix((scale, 0, (1 - scale) * x * half[0]), (0, scale, (1 - scale) * y * half[1]), (0, 0, 1))


def warp_matrix(x: Array | float, y: Array | float, half: tuple[float, float]) -> Array:
    """A perspective tilt: the left edge grows by the factor 1 + x and the right shrinks by 1 - x; y likewise.

    fastai's `Warp` takes the corners (-1, -1), (-1, 1), (1, -1), (1, 1) to (-1-y, -1-x), (-1+y, 1+x),
    (1+y, -1+x), (1-y, 1-x) and solves eight equations per image. Their solution in closed form is
    [[1-y², -xy, x], [-xy, 1-x², y], [x, y, 1]]; this is its inverse, from the output to the input. `half` as
    in `zoom_matrix`. The horizon stays out of the picture while |x| and |y| are below (√3 - 1) / 2 = 0.366.
    """
    half_x, half_y = half
    rest = 1 - x * x - y * y
    shear = 2 * x * y / rest
    tilt_x = -x * (1 - x * x + y * y) / rest
    tilt_y = -y * (1 + x * x - y * y) / rest
    return _matrix(
        (1, shear * half_x / half_y, tilt_x * half_x),
        (shear * half_y / half_x, 1, tilt_y * half_y),
        (tilt_x / half_x, tilt_y / half_y, 1),
    )


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


def _erase(key: Array, image: Array, draw: dict[str, Array]) -> Array:
    """Put noise of the image's own mean and spread into a rectangle (fastai: N(0, 1) after normalising)."""
    height, width, _ = image.shape
    area = 0.3 * draw["erase area"] * height * width
    aspect = jnp.exp(math.log(0.3) * (2 * draw["erase aspect"] - 1))

    def span(length, position, extent):
        length = jnp.round(jnp.sqrt(length))
        start = jnp.floor(position * (jnp.maximum(extent - length, 0) + 1))
        index = jnp.arange(extent)
        return (index >= start) & (index < start + length)

    rows = span(area * aspect, draw["erase y"], height)
    columns = span(area / aspect, draw["erase x"], width)
    noise = image.mean((0, 1)) + image.std((0, 1)) * jax.random.normal(key, image.shape, jnp.float32)
    return jnp.where((rows[:, None] & columns)[..., None], jnp.clip(noise, 0, 255), image)


def _place(draw: Array, room: int) -> Array:
    """A whole number from 0 to `room`; the product can round up to room + 1."""
    return jnp.minimum(jnp.floor(draw * (room + 1)), room)


def _matrix(*rows: tuple) -> Array:
    return jnp.stack([jnp.stack([jnp.asarray(entry, jnp.float32) for entry in row]) for row in rows])


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # else bf16 on a TPU, TF32 on a GPU


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
