"""Data of images from where they are: folders, arrays, frames, sources, TensorFlow Datasets and packed shards."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxfast.data.dataset import tracked
from jaxfast.data.image_data import ImageData, Size, Valid, image_data
from jaxfast.data.images import check_pixels
from jaxfast.data.labels import Labels, any_labels, is_missing, label_classes, label_tags
from jaxfast.data.packed import read_packed
from jaxfast.data.sources import SourceImages, image_and_label, image_files
from jaxfast.data.tfds_images import read_tfds
from jaxfast.messages import first, kind, nearest

_HELD_OUT = ("valid", "val", "test")


def folder_labels(path: str | os.PathLike, classes: Sequence[str] | None) -> tuple[tuple[Path, ...], list[str], Labels]:
    """The image files of a folder of class folders, their names below it, and their labels."""
    files = image_files(path)
    names = [file.relative_to(path).as_posix() for file in files]
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(
            f"{first(loose)}: directly in {path}, in no class folder; put images into folders named after their class"
        )
    labels = label_classes(
        [file.parent.name for file in files],
        classes,
        source=f"the class folders of {path}",
        where=lambda i: names[i],
    )
    return files, names, labels


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


def _check_unmixed(names: Sequence[str], valid: Valid, where: str | os.PathLike, otherwise: str = "") -> None:
    """ValueError for a random part of images that lie in folders for training and validation."""
    tops = {name.split("/")[0] for name in names if name.count("/") >= 2}
    if isinstance(valid, float) and "train" in tops and tops.intersection(_HELD_OUT):
        held_out = [top for top in _HELD_OUT if top in tops]
        raise ValueError(
            f"{where} has the folders train and {first(held_out)}, which valid={valid} would mix: "
            f"say valid={held_out[0]!r}{otherwise}"
        )


def from_folder(
    path: str | os.PathLike,
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
    """Images in class folders: the class of an image is the name of the folder that it lies in, at any depth.

    `valid`: a fraction (of every class), a folder (`"valid"`: path/valid/<class>/ validates, path/train/<class>/
    trains, and what lies elsewhere is left out), a list of file names, or indices into `image_files(path)`.
    `size`: what the model sees, a side in pixels or (height, width). `presize` (default `size`): what the host makes
    of every image, by `resize` "crop", "pad" or "squish"; a random crop of `size` pixels is then cut on the device.
    `augment`: True for `image_augment(size)`, False for none, or your own `(key, batch) -> batch`.
    `channels`: 3 or 1 (grey). `classes`: the class names in order, where sorted names will not do.
    `on_error`: "raise" names an unreadable image when it is read, "skip" looks at every file now and leaves the
    unreadable ones out with a warning. Raises ValueError or FileNotFoundError for anything that does not fit.
    """
    files, names, labels = folder_labels(path, classes)
    _check_unmixed(names, valid, path, f", or give {Path(path, 'train')}")
    return image_data(
        files, labels, names=names, named=classes is not None, valid=valid, seed=seed, size=size, presize=presize,
        batch_size=batch_size, augment=augment, resize=resize, channels=channels, on_error=on_error,
    )  # fmt: skip


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    valid: Valid = 0.2,
    seed: int = 42,
    size: Size | None = None,
    presize: Size | None = None,
    batch_size: int = 64,
    augment: bool | Callable = True,
    resize: str = "crop",
    channels: int = 3,
    classes: Sequence[str] | None = None,
) -> ImageData:
    """Images in one uint8 array, (n, height, width) or (n, height, width, 1, 3 or 4).

    `labels` are whole numbers (n,) that count from 0, names (n,), or multi-hot rows (n, classes); `classes` are their
    names. `size` None keeps the size of the images; `valid` is a fraction or indices. The rest as in `from_folder`.
    Raises ValueError for arrays of unequal length, other dtypes and shapes, and labels out of range.
    """
    try:
        images = np.asarray(images)
    except ValueError:
        raise ValueError("the images differ in shape: give from_source a list of (image, label) instead") from None
    if images.dtype.kind not in "biuf":
        raise ValueError("images is no array of pixels: give paths to from_frame, or (image, label) to from_source")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3, 4)):
        swap = images.ndim == 4 and images.shape[1] in (1, 3, 4)
        wanted = "images.transpose(0, 2, 3, 1)" if swap else "(n, height, width) or (n, height, width, 1, 3 or 4)"
        raise ValueError(f"images have the shape {images.shape}: give {wanted}")
    check_pixels(images, "images")
    if not hasattr(labels, "__len__"):
        raise ValueError(f"labels is {kind(labels)}: give one label for each of the {len(images)} images")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels: give one label for each image")
    return image_data(
        images, any_labels(labels, classes), named=classes is not None, valid=valid, seed=seed,
        size=images.shape[1:3] if size is None else size, presize=presize, batch_size=batch_size, augment=augment,
        resize=resize, channels=channels, on_error="raise",
    )  # fmt: skip


def from_frame(
    df: Any,
    *,
    image: str = "path",
    label: str = "label",
    label_delim: str | None = None,
    root: str | os.PathLike = ".",
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
    """Images whose paths, below `root`, and labels are two columns of a data frame.

    `label_delim`: what separates several labels in one cell, such as " "; the targets are then multi-hot, and an
    empty cell means no label. Without it a label is a name, or a whole number. Give `df["is_valid"]` as `valid` to
    split by a column of booleans. The rest as in `from_folder`. Raises ValueError for columns that are not there and
    for missing values, FileNotFoundError for files that are not there.
    """
    if not hasattr(df, "columns"):
        raise ValueError(f"{kind(df)} is no data frame: give one, such as pandas.read_csv(...) makes")
    columns = list(df.columns)
    for name in (image, label):
        if name not in columns:
            raise ValueError(f"no column {name!r}: the columns are {first(columns, 20)}{nearest(name, columns)}")
    if isinstance(valid, str) and valid in columns:
        raise ValueError(f"valid={valid!r} is a column, and text names a folder here: give valid=df[{valid!r}]")
    names = [str(name) for name in df[image]]
    cells = np.asarray(df[label], object)
    absent = [i for i, value in enumerate(df[image]) if is_missing(value)]
    if absent:
        raise ValueError(f"column {image!r} is empty in row {first(absent)}: fill it in or drop it")
    where = lambda i: f"row {i} ({names[i]})"
    if label_delim is None:
        labels = label_classes(cells, classes, source=f"the rows of column {label!r}", where=where)
    else:
        wrong = [i for i, cell in enumerate(cells) if not isinstance(cell, str)]
        if wrong:
            raise ValueError(
                f"the label is missing or no text in {first([where(i) for i in wrong])}: "
                f'drop the rows, or say "" for an image without a label'
            )
        labels = label_tags([[tag for tag in cell.split(label_delim) if tag] for cell in cells], classes, where=where)
    files = tuple(Path(root, name) for name in names)
    if on_error == "raise":
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} files are not there, such as {files[missing[0]]} (row {missing[0]}): "
                f"column {image!r} holds paths below root={os.fspath(root)!r}"
            )
    return image_data(
        files, labels, names=[name.replace(os.sep, "/") for name in names], named=classes is not None, valid=valid,
        seed=seed, size=size, presize=presize, batch_size=batch_size, augment=augment, resize=resize,
        channels=channels, on_error=on_error,
    )  # fmt: skip


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
        _check_unmixed(names, valid, path)
    return image_data(
        images, labels, names=names, named=True, valid=valid, seed=seed, size=packed_size if size is None else size,
        presize=presize, batch_size=batch_size, augment=augment, resize=resize, channels=channels, on_error="raise",
    )  # fmt: skip
