"""Figures from plain arrays; each function returns a matplotlib Figure and touches no global state."""

from jaxfast.plot.figures import BLUE, GREEN, ORANGE, PURPLE, RED, finish, new_figure
from jaxfast.plot.images import heatmap, show_images, top_losses
from jaxfast.plot.segmentation import show_masks, show_points, show_segmentation
from jaxfast.plot.training import confusion_matrix, losses, lr_find, metrics, schedule, terms

__all__ = [
    "BLUE",
    "GREEN",
    "ORANGE",
    "PURPLE",
    "RED",
    "confusion_matrix",
    "finish",
    "heatmap",
    "losses",
    "lr_find",
    "metrics",
    "new_figure",
    "schedule",
    "show_images",
    "show_masks",
    "show_points",
    "show_segmentation",
    "terms",
    "top_losses",
]
