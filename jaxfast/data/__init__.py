"""Data on the host: sources, images and splits, and the loader that brings them to the device."""

from jaxfast.data.dataset import ImageDataset
from jaxfast.data.image_data import ImageData
from jaxfast.data.images import SkippedImages, UnreadableImage, decode, presize
from jaxfast.data.sources import image_files
from jaxfast.data.split import split_indices

__all__ = [
    "ImageData",
    "ImageDataset",
    "SkippedImages",
    "UnreadableImage",
    "decode",
    "image_files",
    "presize",
    "split_indices",
]
