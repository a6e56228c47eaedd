"""Empty figures, the house style, and images as matplotlib takes them."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from jaxfast._extras import need

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RED, BLUE, ORANGE, GREEN, PURPLE = "#b3261e", "#1f5fa8", "#d9822b", "#2e7d32", "#6a3d9a"


@cache
def _figure_class() -> type[Figure]:
    need("matplotlib", extra="plot", purpose="plots")
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        # A notebook draws a figure made without pyplot only after `%matplotlib inline`; this one always.
        def _repr_png_(self) -> bytes:
            png = io.BytesIO()
            self.savefig(png, format="png")
            return png.getvalue()

    return NotebookFigure


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """An empty figure of that size in inches, which a notebook shows without pyplot."""
    figure = _figure_class()(figsize=(width, height), layout=layout)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def finish(figure: Figure, *axes, legend: bool = True) -> Figure:
    """The house style on `axes`: light grid, two spines, and the first axes' legend above the figure."""
    for ax in axes:
        ax.grid(True, color="0.92")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    if legend:
        handles, labels = axes[0].get_legend_handles_labels()
        columns = len(labels) if len(labels) < 5 else 3
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    return figure


def pixels_of(image: np.ndarray) -> np.ndarray:
    """An image in 0..255, (H, W), (H, W, 1) or (H, W, 3), as uint8 of a shape that imshow takes."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] == 3):
        raise ValueError(f"an image has the shape {image.shape}: give (H, W), (H, W, 1) or (H, W, 3)")
    return np.clip(np.round(image.astype(np.float32)), 0, 255).astype(np.uint8)
