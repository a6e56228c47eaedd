"""Image augmentation on the device: pure functions of a key and a batch."""

from jaxfast.augment.erasing import random_erasing
from jaxfast.augment.geometry import (
    flip_matrix,
    move_points,
    resample,
    resample_mask,
    rotate_matrix,
    turn_matrix,
    warp_matrix,
    zoom_matrix,
)
from jaxfast.augment.transforms import (
    Augment,
    Batch,
    CenterCrop,
    ImageAugment,
    Prepare,
    center_crop,
    image_augment,
    relight,
)

__all__ = [
    "Augment",
    "Batch",
    "CenterCrop",
    "ImageAugment",
    "Prepare",
    "center_crop",
    "flip_matrix",
    "image_augment",
    "move_points",
    "random_erasing",
    "relight",
    "resample",
    "resample_mask",
    "rotate_matrix",
    "turn_matrix",
    "warp_matrix",
    "zoom_matrix",
]
