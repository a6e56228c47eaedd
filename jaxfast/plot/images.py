"""Figures of images: grids under titles, masks, key-points and heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxfast.plot.figures import RED, new_figure, pixels_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_images(
    images: Sequence[np.ndarray] | np.ndarray,
    titles: Sequence[str] | None = None,
    *,
    wrong: Sequence[bool] | None = None,
    columns: int | None = None,
) -> Figure:
    """Show images in a grid, each under its title; titles of those marked `wrong` are red.

    `images` are uint8 or float in 0..255, each (H, W), (H, W, 1) or (H, W, 3).
    Raises ValueError for no images and for titles or marks that are not one per image.
    """
    count = len(images)
    if not count:
        raise ValueError("there are no images to show: give at least one")
    for name, given in (("titles", titles), ("marks (wrong)", wrong)):
        if given is not None and len(given) != count:
            raise ValueError(f"{len(given)} {name} for {count} images: give one per image")
    columns = columns or min(count, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    lines = 0 if titles is None else max(title.count("\n") + 1 for title in titles)
    figure = new_figure(2.1 * columns, (2.1 + 0.2 * lines) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for index, image in enumerate(images):
        axes[index].imshow(pixels_of(image), cmap="gray", vmin=0, vmax=255)
        if titles is not None:
            color = RED if wrong is not None and wrong[index] else "black"
            axes[index].set_title(titles[index], fontsize=9, color=color)
    return figure


def top_losses(
    images: Sequence[np.ndarray],
    predicted: Sequence[str],
    actual: Sequence[str],
    losses: Sequence[float],
    probabilities: Sequence[float],
) -> Figure:
    """Show images under prediction, actual label, loss and probability of the prediction; errors are red."""
    titles = [
        f"predicted {guess}\nactual {label}\nloss {loss:.2f}, p {probability:.2f}"
        for guess, label, loss, probability in zip(predicted, actual, losses, probabilities, strict=True)
    ]
    wrong = [guess != label for guess, label in zip(predicted, actual, strict=True)]
    return show_images(images, titles, wrong=wrong)


def heatmap(image: np.ndarray, values: np.ndarray, title: str | None = None) -> Figure:
    """Show an image, and beside it the same image under a map (h, w) in 0..1 stretched over it."""
    pixels = pixels_of(image)
    height, width = pixels.shape[:2]
    figure = new_figure(7.6, 3.4 * min(max(height / width, 0.5), 2) + 0.5, "compressed")
    plain, covered = figure.subplots(1, 2)
    for ax in (plain, covered):
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        ax.axis("off")
    # The cells of the map tile the image: its borders, not its pixel centres, lie on the image's borders.
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    cover = covered.imshow(values, extent=extent, cmap="inferno", alpha=0.55, interpolation="bilinear", vmin=0, vmax=1)
    bar = figure.colorbar(cover, ax=(plain, covered), shrink=0.85)
    bar.set_label("evidence, relative to its peak", labelpad=8)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
