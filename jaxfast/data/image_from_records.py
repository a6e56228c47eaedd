"""Data of images that are read as records: sources of any kind, TensorFlow Datasets and packed shards."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxfast.data.image_data import ImageData, Size, Valid, image_data
from jaxfast.data.image_from import check_unmixed
from jaxfast.data.labels import Labels, any_labels
from jaxfast.data.packed import read_packed
from jaxfast.data.sources import SourceImages, image_and_label, tracked
from jaxfast.data.tfds_images import read_tfds
from jaxfast.messages import kind


def source_labels(source: Any, classes: Sequence[str] | None) -> tuple[SourceImages, Labels]:
    """The images of a source, and its labels, for which it is read once."""
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(f"a source needs len() and [i], {kind(source)} lacks them: give a list, for one")
    n = len(source)
    if not n:
        raise ValueError("the source is empty: give at least two examples")
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda i: image_and_label(source, i)[1], range(n))
        labels = list(tracked(read, "reading labels", n > 5000, n))
    return SourceImages(source), any_labels(labels, classes)


def from_source(
    source: Any,
    *,
    valid: Valid = 0.2,
    seed: int = 42,
    size: Size = 224,
    presize: Size | None = None,
    batch_size: int = 64,
    augment: bool | Callable = True,
    resize: str = "crop",
    channels: int = 3,
    classes: Sequence[str] | None = None,
    on_error: str = "raise",
) -> ImageData:
    """Anything with len() and [i] that gives (image, label) or {"image": ..., "label": ...}, such as torch data sets.

    An image is a path, bytes, a PIL image or an array; a label is a whole number that counts from 0, a name, a list
    of names, or a multi-hot row. The source is read once now, for its labels, and then from several threads at once.
    `valid` is a fraction or indices; the rest as in `from_folder`. Raises ValueError for anything else.
    """
    images, labels = source_labels(source, classes)
    return image_data(
        images, labels, named=classes is not None, valid=valid, seed=seed, size=size, presize=presize,
        batch_size=batch_size, augment=augment, resize=resize, channels=channels, on_error=on_error,
    )  # fmt: skip


def from_tfds(
    name: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    image: str = "image",
    label: str = "label",
    valid: Valid = 0.2,
    seed: int = 42,
    size: Size = 224,
    presize: Size | None = None,
    batch_size: int = 64,
    augment: bool | Callable = True,
    resize: str = "crop",
    channels: int = 3,
    on_error: str = "raise",
) -> ImageData:
    """Images of a prepared data set of TensorFlow Datasets, read from ArrayRecord files without TensorFlow.

    `name`: "cifar10", "imagenet_v2/matched-frequency", "cifar10:3.0.2" in `data_dir` (default: TFDS_DATA_DIR, else
    ~/tensorflow_datasets), or a folder; `python -m jaxfast.data.tfds_prepare NAME` prepares it. `split` trains;
    `valid` is another split ("validation", "test", "train[80%:]" beside split="train[:80%]"), or a fraction or indices
    of `split`. `image` and `label` are features; the label's ClassLabel names the classes. The records are read once
    now, for their labels. The rest as in `from_folder`. Raises FileNotFoundError for a data set that is not prepared,
    ValueError for TFRecord files, features and splits that are not there, splits that overlap, and missing labels.
    """
    held_out = valid if isinstance(valid, str) else None
    images, labels, n_train = read_tfds(name, data_dir, split=split, valid=held_out, image=image, label=label)
    return image_data(
        images, labels, named=True, valid=valid if held_out is None else np.arange(n_train, len(labels.targets)),
        seed=seed, size=size, presize=presize, batch_size=batch_size, augment=augment, resize=resize,
        channels=channels, on_error=on_error,
    )  # fmt: skip


def from_packed(
    path: str | os.PathLike,
    *,
    valid: Valid = 0.2,
    seed: int = 42,
    size: Size | None = None,
    presize: Size | None = None,
    batch_size: int = 64,
    augment: bool | Callable = True,
    resize: str = "crop",
    channels: int = 3,
) -> ImageData:
    """Images that `python -m jaxfast.data.pack FOLDER path` wrote, read from their shards when they are asked for.

    `valid`: as in `from_folder`, names being those below FOLDER; of a packed `tfds:NAME --valid SPLIT`, "valid" is
    that split. `size` None is the size that they were packed in; give `presize` to cut a smaller `size` from it at
    random. The rest as in `from_folder`. Raises FileNotFoundError where there is no pack, or a shard is missing,
    ValueError for a pack that is not finished and, naming it, for a damaged shard.
    """
    images, labels, names, packed_size = read_packed(path)
    if names is not None:
        check_unmixed(names, valid, path)
    return image_data(
        images, labels, names=names, named=True, valid=valid, seed=seed, size=packed_size if size is None else size,
        presize=presize, batch_size=batch_size, augment=augment, resize=resize, channels=channels, on_error="raise",
    )  # fmt: skip
