"""What a model says of one item, in the reader's terms."""

import dataclasses
from typing import Any

import numpy as np

from jaxfast.messages import first


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A classifier's answer: the `label`, its `index`, and the `probabilities` of all `classes`, shape (classes,).

    With any number of labels per item, `label` holds all names above one half and `index` their numbers, an array.

    >>> Prediction("cat", 0, np.array([0.75, 0.25]), ("cat", "dog"))
    Prediction('cat', index=0, probabilities: cat 0.750, dog 0.250)
    """

    label: str
    index: int | np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    def __repr__(self) -> str:
        likeliest = np.argsort(-np.asarray(self.probabilities), kind="stable")
        shown = first([f"{self.classes[i]} {self.probabilities[i]:.3f}" for i in likeliest])
        index = np.asarray(self.index).tolist()
        return f"Prediction({self.label!r}, index={index}, probabilities: {shown})"


@dataclasses.dataclass(frozen=True)
class Value:
    """A regression's answer: a number, or an array of one per target."""

    value: float | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The class of every pixel: `mask`, uint8 (height, width), with the `probabilities` (height, width, classes).

    The mask covers what the model sees of the image, at the size in which it sees it.
    """

    mask: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    @property
    def value(self) -> dict[str, float]:
        """The share of the pixels that each class has, 0..1."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        return dict(zip(self.classes, (counts / self.mask.size).tolist(), strict=True))

    @property
    def label(self) -> str:
        """The classes that occur and their shares, the largest first."""
        return shares(self.mask, self.classes)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Segmentation({height}x{width} pixels: {self.label})"


def shares(mask: np.ndarray, classes: tuple[str, ...]) -> str:
    """The classes of a mask in words, the largest first, in percent of the pixels that are not void.

    >>> shares(np.array([[0, 1, 1, 1, 255]]), ("sky", "road"))
    'road 75 %, sky 25 %'
    """
    counts = np.bincount(np.ravel(mask), minlength=256)[: len(classes)]
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    return first([f"{classes[i]} {100 * counts[i] / counts.sum():.0f} %" for i in order], 4) or "(void)"


@dataclasses.dataclass(frozen=True, eq=False)
class KeyPoints:
    """Key-points: `points`, (k, 2), an (x, y) for each of `names`, in pixels from the upper left corner.

    They are pixels of the image as the data set holds it, brought to `size` (height, width) by `resize`; `of(item)`
    has them in the pixels of the image itself, whose `size` then is None.
    """

    points: np.ndarray
    names: tuple[str, ...]
    size: tuple[int, int] | None
    resize: str

    @property
    def value(self) -> np.ndarray:
        return self.points

    def of(self, item: Any) -> "KeyPoints":
        """The points in the pixels of the image that they were predicted for: a path, bytes, a PIL image or an array.

        An example of a data set has no other size than the data set's: its points are returned as they are.
        """
        from jaxfast.data.images import image_extent
        from jaxfast.data.points import unpresized

        extent = image_extent(item)
        if extent is None or self.size is None:
            return self
        return dataclasses.replace(self, points=unpresized(self.points, extent, self.size, self.resize), size=None)

    def __repr__(self) -> str:
        shown = first([f"{name} ({x:.1f}, {y:.1f})" for name, (x, y) in zip(self.names, self.points, strict=True)])
        return f"KeyPoints({shown})"
