"""Key-points: places (x, y) in images, brought along when an image is presized, and back.

A place is in pixels from the image's upper left corner, x to the right and y down: the first pixel reaches from 0 to 1
and its centre is (.5, .5). Models see places from -1, the left and upper border, to 1 (fastai's PointScaler).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxfast.data.images import window
from jaxfast.data.labels import Labels, check_classes
from jaxfast.messages import first

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Points:
    """The key-points of one split: `pixels`, float32 (n, k, 2), each in the pixels of its own image."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: np.ndarray) -> "Points":
        return replace(self, pixels=self.pixels[rows])

    def nbytes(self, size: Size) -> int:
        """Bytes of all targets."""
        return self.pixels.nbytes

    def read(self, i: int, extent: Size, size: Size, resize: str) -> np.ndarray:
        """The points of example i, float32 (k, 2) in -1..1, where an image of `extent` is presized to `size`."""
        return to_scaled(presized(self.pixels[i], extent, size, resize), size).astype(np.float32)


def presized(points: np.ndarray, extent: Size, size: Size, resize: str) -> np.ndarray:
    """Points (..., 2) of an image of `extent` in the pixels that it has at `size`."""
    scale, shift = _placed(extent, size, resize)
    return points * scale + shift


def unpresized(points: np.ndarray, extent: Size, size: Size, resize: str) -> np.ndarray:
    """The inverse of `presized`."""
    scale, shift = _placed(extent, size, resize)
    return (points - shift) / scale


def to_scaled(points: np.ndarray, size: Size) -> np.ndarray:
    """Points (..., 2) in pixels of an image of `size`, (height, width), in -1..1.

    >>> to_scaled(np.array([0.0, 12.0]), (16, 8)).tolist()
    [-1.0, 0.5]
    """
    return 2 * points / np.array(size[::-1], np.float64) - 1


def to_pixels(points: np.ndarray, size: Size) -> np.ndarray:
    """The inverse of `to_scaled`."""
    return (points + 1) / 2 * np.array(size[::-1], np.float64)


def label_points(values: Any, names: Sequence[Any] | None, *, where) -> Labels:
    """Key-points (n, k, 2), or (n, 2) of one each, in pixels of their images; `names` are those of the k points.

    Raises ValueError for other shapes, and naming the example for coordinates that are missing or infinite.
    """
    values = number_array(values, "points", where)
    if values.ndim == 2:
        values = values[:, None]
    if values.ndim != 3 or values.shape[-1] != 2 or not values.shape[1]:
        raise ValueError(f"points of shape {values.shape}: give (n, k, 2), an x and a y for each of the k points")
    return Labels(Points(values), _names(names, values.shape[1], "points"), "points")


def label_numbers(values: Any, names: Sequence[Any] | None, *, where) -> Labels:
    """Numbers (n,) or (n, k) to be predicted; `names` are those of the k numbers. ValueError as in `label_points`."""
    values = number_array(values, "numbers", where)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise ValueError(f"numbers of shape {values.shape}: give (n,) or (n, k)")
    same = np.flatnonzero((values == values[:1]).all(0)) if len(values) else ()
    if len(same):
        raise ValueError(f"number {same[0]} is {values[0, same[0]]:g} for every image: there is nothing to predict")
    return Labels(values, _names(names, values.shape[1], "numbers"), "regression")


def number_array(values: Any, what: str, where) -> np.ndarray:
    """Values as float32; ValueError for what is no number, and naming the example for missing and infinite ones."""
    try:
        values = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"the {what} are no numbers of one shape: give an array of them") from None
    if not len(values):
        raise ValueError(f"there are no {what}: give some for each image")
    wrong = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(wrong):
        raise ValueError(
            f"the {what} of {first([where(int(i)) for i in wrong])} are missing or not finite: "
            "fill them in or drop those images"
        )
    return values


def _names(names: Sequence[Any] | None, k: int, what: str) -> tuple[str, ...]:
    names = check_classes(range(k) if names is None else names)
    if len(names) != k:
        raise ValueError(f"{len(names)} names in classes= for {k} {what}: give one each")
    return names


def _placed(extent: Size, size: Size, resize: str) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the shift, each (x, y), from an image of `extent` to the result of `size`."""
    height, width = extent
    (left, top, right, bottom), inner, corner = window((0, 0, width, height), size, resize)
    scale = np.array([inner[1] / (right - left), inner[0] / (bottom - top)])
    return scale, np.array(corner[::-1]) - scale * (left, top)
