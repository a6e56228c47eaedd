"""Figures of what lies in images: masks over them, and key-points."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxfast.plot.figures import new_figure, pixels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Twenty that differ to the eye (Trubetskoy 2017, "20 simple, distinct colors").
_COLOURS = (
    "e6194b", "3cb44b", "ffe119", "4363d8", "f58231", "911eb4", "46f0f0", "f032e6", "bcf60c", "fabebe",
    "008080", "e6beff", "9a6324", "fffac8", "800000", "aaffc3", "808000", "ffd8b1", "000075", "808080",
)  # fmt: skip


def show_masks(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], classes: Sequence[str], *, alpha: float = 0.55
) -> Figure:
    """Show images in a grid, each under its mask (H, W) of class numbers; what is no class (void) is left clear.

    A legend names the classes that occur. Images as in `show_images`. ValueError for no images, and for masks of
    another number or shape.
    """
    _check_masks(images, masks)
    axes, figure = _grid(len(images), min(len(images), math.ceil(math.sqrt(len(images)))))
    for ax, image, mask in zip(axes, images, masks, strict=False):
        ax.imshow(pixels_of(image), cmap="gray", vmin=0, vmax=255)
        ax.imshow(_painted(mask, len(classes), alpha), interpolation="nearest")
    _legend(figure, _patches(masks, classes))
    return figure


def show_segmentation(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    classes: Sequence[str],
    *,
    alpha: float = 0.75,
) -> Figure:
    """Show a row for each image: the image, the true mask over it, and the predicted one; the rest as in `show_masks`.

    What is void in the true mask is clear in both.
    """
    _check_masks(images, truths)
    _check_masks(images, predictions)
    axes, figure = _grid(3 * len(images), 3)
    predictions = [np.where(np.asarray(t) < len(classes), p, 255) for t, p in zip(truths, predictions, strict=True)]
    for row, (image, truth, prediction) in enumerate(zip(images, truths, predictions, strict=True)):
        for ax, mask in zip(axes[3 * row : 3 * row + 3], (None, truth, prediction), strict=True):
            ax.imshow(pixels_of(image), cmap="gray", vmin=0, vmax=255)
            if mask is not None:
                ax.imshow(_painted(mask, len(classes), alpha), interpolation="nearest")
    for ax, title in zip(axes, ("image", "truth", "prediction"), strict=False):
        ax.set_title(title, fontsize=10)
    _legend(figure, _patches([*truths, *predictions], classes))
    return figure


def show_points(
    images: Sequence[np.ndarray],
    points: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    predictions: Sequence[np.ndarray] | None = None,
) -> Figure:
    """Show images in a grid with their key-points (k, 2), an (x, y) each in pixels from the upper left corner.

    A point has the colour of its name; with `predictions`, which are crosses, the points themselves are rings.
    """
    count = len(images)
    if not count:
        raise ValueError("there are no images to show: give at least one")
    for name, given in (("points", points), ("predictions", points if predictions is None else predictions)):
        if len(given) != count:
            raise ValueError(f"{len(given)} {name} for {count} images: give one per image")
    axes, figure = _grid(count, min(count, math.ceil(math.sqrt(count))))
    colours = _colours(len(names))
    kinds = [("points" if predictions is None else "truth", points, "o")]
    kinds += [] if predictions is None else [("prediction", predictions, "x")]
    for i, (ax, image) in enumerate(zip(axes, images, strict=False)):
        pixels = pixels_of(image)
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        for _, given, marker in kinds:
            filled = colours if marker == "x" or predictions is None else "none"
            edges = {} if marker == "x" else {"edgecolors": colours}
            # the centre of a pixel is half a pixel from its corner, where imshow counts from
            x, y = np.asarray(given[i], float).T - 0.5
            ax.scatter(x, y, s=36, marker=marker, c=filled, linewidths=1.6, clip_on=True, **edges)
        ax.set_xlim(-0.5, pixels.shape[1] - 0.5)
        ax.set_ylim(pixels.shape[0] - 0.5, -0.5)
    handles = [_dot(colour, "o", name) for colour, name in zip(colours, names, strict=True)] if len(names) > 1 else []
    if predictions is not None:
        handles += [_dot("0.3", "o", "truth", hollow=True), _dot("0.3", "x", "prediction")]
    _legend(figure, handles)
    return figure


def _colours(count: int) -> np.ndarray:
    """Colours (count, 3), 0..1: twenty chosen ones, then more around the circle of hues by the golden section."""
    chosen = [[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in _COLOURS[:count]]
    more = [colorsys.hsv_to_rgb(0.618034 * i % 1, 0.55 + 0.4 * (i % 2), 0.9 - 0.3 * (i % 3 == 0)) for i in range(count)]
    return np.array(chosen + more[len(chosen) :]).reshape(count, 3)


def _painted(mask: np.ndarray, count: int, alpha: float) -> np.ndarray:
    """A mask as RGBA, clear where it is of no class."""
    mask = np.asarray(mask)
    inside = mask < count
    paint = np.zeros((*mask.shape, 4))
    paint[..., :3] = _colours(count)[np.where(inside, mask, 0)]
    paint[..., 3] = alpha * inside
    return paint


def _check_masks(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> None:
    if not len(images):
        raise ValueError("there are no images to show: give at least one")
    if len(masks) != len(images):
        raise ValueError(f"{len(masks)} masks for {len(images)} images: give one per image")
    for image, mask in zip(images, masks, strict=True):
        if np.shape(mask) != np.shape(image)[:2]:
            raise ValueError(f"a mask of shape {np.shape(mask)} for an image of {np.shape(image)}: give one as large")


def _grid(count: int, columns: int):
    """As many axes without ticks as there are places in the rows of `columns`, and their figure."""
    rows = math.ceil(count / columns)
    figure = new_figure(2.6 * columns, 2.3 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    return axes, figure


def _patches(masks: Sequence[np.ndarray], classes: Sequence[str]) -> list:
    """The legend's entries for the classes that occur."""
    from matplotlib.patches import Patch

    there = sorted(set().union(*(np.unique(mask).tolist() for mask in masks)) & set(range(len(classes))))
    colours = _colours(len(classes))
    return [Patch(color=colours[i], label=str(classes[i])) for i in there]


def _legend(figure: Figure, handles: list) -> None:
    if handles:
        columns = min(len(handles), max(2, int(figure.get_figwidth() / 1.35)))  # names of up to a dozen letters
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _dot(colour, marker: str, label: str, *, hollow: bool = False):
    from matplotlib.lines import Line2D

    face = "none" if hollow else colour
    style = {"linestyle": "", "markersize": 7, "markeredgewidth": 1.6}
    return Line2D([], [], color=colour, marker=marker, markerfacecolor=face, label=label, **style)
