"""Data of images from folders, arrays and frames."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfast.data.image_data import ImageData, Size, Valid, image_data
from jaxfast.data.images import check_pixels
from jaxfast.data.labels import Labels, any_labels, is_missing, label_classes, label_rows, label_tags, split_tags
from jaxfast.data.masks import Void, array_masks, file_masks, mask_files
from jaxfast.data.points import label_numbers, label_points
from jaxfast.data.sources import image_files
from jaxfast.messages import first, kind, nearest

_HELD_OUT = ("valid", "val", "test")
_TASKS = ("auto", "single_label", "multi_label", "segmentation", "regression", "points")


def folder_labels(
    path: str | os.PathLike, classes: Sequence[str] | None, label_delim: str | None = None
) -> tuple[tuple[Path, ...], list[str], Labels]:
    """The image files of a folder of class folders, their names below it, and their labels."""
    files = image_files(path)
    names = [file.relative_to(path).as_posix() for file in files]
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(
            f"{first(loose)}: directly in {path}, in no class folder; put images into folders named after their class"
        )
    folders, source, where = [file.parent.name for file in files], f"the class folders of {path}", lambda i: names[i]
    if label_delim is None:
        return files, names, label_classes(folders, classes, source=source, where=where)
    return files, names, label_tags(split_tags(folders, label_delim, classes, source=source), classes, where=where)


def check_unmixed(
    names: Sequence[str], valid: Valid, where: str | os.PathLike, otherwise: str = "", *, folders: int = 2
) -> None:
    """ValueError for a random part of images that lie in folders for training and validation, `folders` deep."""
    tops = {name.split("/")[0] for name in names if name.count("/") >= folders}
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
    label_delim: str | None = None,
    on_error: str = "raise",
) -> ImageData:
    """Images in class folders: the class of an image is the name of the folder that it lies in, at any depth.

    `valid`: a fraction (of every class), a folder (`"valid"`: path/valid/<class>/ validates, path/train/<class>/
    trains, and what lies elsewhere is left out), a list of file names, or indices into `image_files(path)`.
    `size`: what the model sees, a side in pixels or (height, width). `presize` (default `size`): what the host makes
    of every image, by `resize` "crop", "pad" or "squish"; a random crop of `size` pixels is then cut on the device.
    `augment`: True for `image_augment(size)`, False for none, or your own `(key, batch) -> batch`.
    `channels`: 3 or 1 (grey). `classes`: the class names in order, where sorted names will not do. `label_delim`: what
    separates several labels in the name of a folder, such as "_" in "red_dress"; the targets are then multi-hot.
    `on_error`: "raise" names an unreadable image when it is read, "skip" looks at every file now and leaves the
    unreadable ones out with a warning. Raises ValueError or FileNotFoundError for anything that does not fit.
    """
    files, names, labels = folder_labels(path, classes, label_delim)
    check_unmixed(names, valid, path, f", or give {Path(path, 'train')}")
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
    void: Void = None,
    task: str = "auto",
) -> ImageData:
    """Images in one uint8 array, (n, height, width) or (n, height, width, 1, 3 or 4).

    `labels` are whole numbers (n,) that count from 0, names (n,), multi-hot rows (n, classes), or masks (n, height,
    width) of codes; `classes` are their names, and `void` is what in masks belongs to no class (`from_masks`). With
    `task` "regression" they are numbers to predict, (n,) or (n, k); with "points" places (n, k, 2), an (x, y) each in
    pixels from the upper left corner, where the first pixel has its centre at (.5, .5). `size` None keeps the size of
    the images; `valid` is a fraction or indices. The rest as in `from_folder`. Raises ValueError for arrays of unequal
    length, other dtypes and shapes, labels and codes out of range, and numbers that are missing.
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
    shape = getattr(labels, "shape", ())
    _check_task(task)
    masks = task == "segmentation" or (task not in ("regression", "points") and len(shape) == 3)
    if len(images) != len(labels):
        what = "mask" if masks else "label"
        raise ValueError(f"{len(images)} images, but {len(labels)} {what}s: give one {what} for each image")
    where = lambda i: f"image {i}"
    if void is not None and not masks:
        raise ValueError(f"void={void!r} is for masks (n, height, width), the labels have the shape {shape}")
    if task == "regression":
        found = label_numbers(labels, classes, where=where)
    elif task == "points":
        found = label_points(labels, classes, where=where)
    elif masks:
        found = array_masks(images, np.asarray(labels), classes, void)
    else:
        found = any_labels(labels, classes)
    _check_task(task, found)
    return image_data(
        images, found, named=classes is not None, valid=valid, seed=seed,
        size=images.shape[1:3] if size is None else size, presize=presize, batch_size=batch_size, augment=augment,
        resize=resize, channels=channels, on_error="raise",
    )  # fmt: skip


def _check_task(task: str, labels: Labels | None = None) -> None:
    """ValueError for an unknown task, and for labels that are of another one."""
    if task not in _TASKS:
        raise ValueError(f"task={task!r} is unknown: give one of {first(_TASKS, 10)}{nearest(task, _TASKS)}")
    if labels is not None and task not in ("auto", labels.task):
        raise ValueError(f"task={task!r}, but these labels are of task {labels.task!r}: give the one or the other")


def from_frame(
    df: Any,
    *,
    image: str = "path",
    label: str | Sequence[str] = "label",
    label_delim: str | None = None,
    mask: str | None = None,
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
    void: Void = None,
    task: str = "auto",
    on_error: str = "raise",
) -> ImageData:
    """Images whose paths, below `root`, and labels are columns of a data frame.

    `label_delim`: what separates several labels in one cell, such as " "; the targets are then multi-hot, and an
    empty cell means no label. Without it a label is a name, or a whole number. `label` may be several columns, with
    `task` "multi_label" of zeros and ones, "regression" of numbers to predict, or "points" of x, y, x, y, ..., places
    in pixels of each image from its upper left corner, where the first pixel has its centre at (.5, .5). `mask`: the
    column of mask files below `root`, instead of labels; `classes` are then the names of their codes and `void` what
    belongs to no class, as in `from_masks`. Give `df["is_valid"]` as `valid` to split by a column of booleans. The
    rest as in `from_folder`. Raises ValueError for columns that are not there and for missing values,
    FileNotFoundError for files that are not there.
    """
    if not hasattr(df, "columns"):
        raise ValueError(f"{kind(df)} is no data frame: give one, such as pandas.read_csv(...) makes")
    _check_task(task)
    columns = list(df.columns)
    wanted = [label] if isinstance(label, str) else list(label)
    for name in (image, *(wanted if mask is None else [mask])):
        if name not in columns:
            raise ValueError(f"no column {name!r}: the columns are {first(columns, 20)}{nearest(name, columns)}")
    if isinstance(valid, str) and valid in columns:
        raise ValueError(f"valid={valid!r} is a column, and text names a folder here: give valid=df[{valid!r}]")
    names = _paths(df, image)
    files = tuple(Path(root, name) for name in names)
    if on_error == "raise":
        missing = [i for i, file in enumerate(files) if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} files are not there, such as {files[missing[0]]} (row {missing[0]}): "
                f"column {image!r} holds paths below root={os.fspath(root)!r}"
            )
    if mask is not None:
        if classes is None:
            raise ValueError(f"mask={mask!r} needs the names of the codes in masks: give classes=")
        masks = mask_files(files, [Path(root, name) for name in _paths(df, mask)], Path(root))
        labels = file_masks(files, masks, classes, void)
    else:
        if void is not None:
            raise ValueError(f"void={void!r} is for masks: give mask=, the column of their files")
        where = lambda i: f"row {i} ({names[i]})"
        labels = _frame_labels(df, wanted, label_delim, classes, task, where)
    _check_task(task, labels)
    return image_data(
        files, labels, names=[name.replace(os.sep, "/") for name in names], named=classes is not None, valid=valid,
        seed=seed, size=size, presize=presize, batch_size=batch_size, augment=augment, resize=resize,
        channels=channels, on_error=on_error,
    )  # fmt: skip


def _paths(df: Any, column: str) -> list[str]:
    """A column of paths; ValueError for empty cells."""
    absent = [i for i, value in enumerate(df[column]) if is_missing(value)]
    if absent:
        raise ValueError(f"column {column!r} is empty in row {first(absent)}: fill it in or drop it")
    return [str(name) for name in df[column]]


def _frame_labels(df: Any, columns: list[str], delim: str | None, classes: Any, task: str, where: Callable) -> Labels:
    """What the label columns of a frame say."""
    source = f"the rows of column {columns[0]!r}"
    if task in ("regression", "points") or len(columns) > 1:
        if task not in ("multi_label", "regression", "points"):
            raise ValueError(
                f"label= names {len(columns)} columns: say task='regression' for numbers, 'points' for x, y, ..., or "
                "'multi_label' for zeros and ones"
            )
        values = np.stack([number_column(df, name, where) for name in columns], -1)
        if task == "multi_label":
            return label_rows(values, columns if classes is None else classes, where=where)
        if task == "regression":
            return label_numbers(values, columns if classes is None else classes, where=where)
        if len(columns) % 2:
            raise ValueError(f"label= names {len(columns)} columns: points need an x and a y each, in this order")
        return label_points(values.reshape(len(values), -1, 2), classes, where=where)
    cells = np.asarray(df[columns[0]], object)
    if delim is None:
        return label_classes(cells, classes, source=source, where=where)
    wrong = [i for i, cell in enumerate(cells) if not isinstance(cell, str)]
    if wrong:
        raise ValueError(
            f"the label is missing or no text in {first([where(i) for i in wrong])}: "
            f'drop the rows, or say "" for an image without a label'
        )
    return label_tags(split_tags(cells, delim, classes, source=source), classes, where=where)


def number_column(df: Any, column: str, where: Callable) -> np.ndarray:
    """A column as float32; ValueError, with the row, for an empty cell and for what is no number."""
    cells = list(df[column])
    for i, cell in enumerate(cells):
        if is_missing(cell):
            raise ValueError(f"column {column!r} is empty in {where(i)}: fill it in or drop the row")
        try:
            float(cell)
        except (TypeError, ValueError):
            raise ValueError(f"column {column!r} holds {cell!r} in {where(i)}: give numbers") from None
    return np.array(cells, np.float32)
