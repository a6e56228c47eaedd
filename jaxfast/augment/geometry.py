"""Geometry as 3x3 matrices: what flips, turns, rotates, zooms and tilts images, their masks and their key-points.

A matrix takes an (x, y, 1) of the output to where the input is read. Both are in pixels from the centre of
the crop, x to the right and y down, so that the identity matrix reads every pixel at exactly its own place.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates


def resample(image: Array, matrix: Array, size: tuple[int, int], left: Array | int = 0, top: Array | int = 0) -> Array:
    """Read an image (H, W, C) through a 3x3 matrix, about the centre of the crop at (`left`, `top`).

    Returns float32 (size[0], size[1], C). Interpolation is bilinear. What lies outside of the image is its
    mirror image about the centres of the border pixels (torch's reflection padding with aligned corners).
    """
    rows, columns = _read_places(matrix, size, left, top)
    words, values = _words(image)
    height, width, _ = image.shape
    top_row, left_column = jnp.floor(rows), jnp.floor(columns)
    down, right = rows - top_row, columns - left_column
    result = 0.0
    for row, by_row in ((top_row, 1 - down), (top_row + 1, down)):
        for column, by_column in ((left_column, 1 - right), (left_column + 1, right)):
            place = _mirrored(row, height) * width + _mirrored(column, width)
            result += (by_row * by_column)[..., None] * values(words[place])
    return jnp.clip(result, 0, 255)


def _words(image: Array) -> tuple[Array, Callable[[Array], Array]]:
    """What a pixel is read as, of each of an image's H * W pixels, and the function from there to float32 (..., C).

    Up to four channels of bytes are read as one word: reading places in no order is what a TPU is slow at.
    """
    channels = image.shape[-1]
    if image.dtype != jnp.uint8 or channels > 4:
        return image.reshape(-1, channels).astype(jnp.float32), lambda pixels: pixels
    shifts = 8 * jnp.arange(channels, dtype=jnp.uint32)
    words = (image.astype(jnp.uint32) << shifts).sum(-1, dtype=jnp.uint32)
    return words.reshape(-1), lambda words: ((words[..., None] >> shifts) & 255).astype(jnp.float32)


def _mirrored(place: Array, length: int) -> Array:
    """The index of a pixel that may lie outside of 0 .. length - 1, reflected at the centres of the border pixels."""
    last = max(length - 1, 1)
    return jnp.abs((place.astype(jnp.int32) + last) % (2 * last) - last)


def resample_mask(
    mask: Array, matrix: Array, size: tuple[int, int], left: Array | int = 0, top: Array | int = 0
) -> Array:
    """Read a mask (H, W) where `resample` reads its image: the value of the nearest pixel, in the mask's dtype."""
    return map_coordinates(mask, _read_places(matrix, size, left, top), 0, mode="mirror")


def move_points(
    points: Array,
    matrix: Array,
    extent: tuple[int, int],
    size: tuple[int, int],
    left: Array | int = 0,
    top: Array | int = 0,
) -> Array:
    """Where points (k, 2) of an image of `extent` (height, width) are in what `resample` makes of it.

    (x, y) in -1..1 over the image, from border to border, become (x, y) in -1..1 over the output; beyond it where a
    point leaves the picture.
    """
    (height, width), (out_height, out_width) = extent, size
    x = (points[:, 0] + 1) * (width / 2) - (left + out_width / 2)
    y = (points[:, 1] + 1) * (height / 2) - (top + out_height / 2)
    # The inverse but for its determinant, which cancels: written out, as in _read_places.
    (a, b, c), (d, e, f), (g, h, i) = matrix
    depth = (d * h - e * g) * x + (b * g - a * h) * y + (a * e - b * d)
    moved_x = ((e * i - f * h) * x + (c * h - b * i) * y + (b * f - c * e)) / depth
    moved_y = ((f * g - d * i) * x + (a * i - c * g) * y + (c * d - a * f)) / depth
    return jnp.stack([moved_x / (out_width / 2), moved_y / (out_height / 2)], -1)


def _read_places(matrix: Array, size: tuple[int, int], left: Array | int, top: Array | int) -> tuple[Array, Array]:
    """The rows and columns of the input at which the pixels of the output are read, each of shape `size`."""
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
    return read_y, read_x


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


def _matrix(*rows: tuple) -> Array:
    return jnp.stack([jnp.stack([jnp.asarray(entry, jnp.float32) for entry in row]) for row in rows])


def matmul(a: Array, b: Array) -> Array:
    """The product of two matrices, in fp32 everywhere."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # else bf16 on a TPU, TF32 on a GPU
