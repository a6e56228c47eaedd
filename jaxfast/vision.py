"""The front door for images: data from folders, arrays, frames and sources, and a learner for them."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxfast.data.dataset import tracked
from jaxfast.data.image_data import ImageData, Size, Valid, image_data
from jaxfast.data.images import check_pixels
from jaxfast.data.labels import any_labels, is_missing, label_classes, label_tags
from jaxfast.data.sources import SourceImages, image_and_label, image_files
from jaxfast.learner import Learner
from jaxfast.losses import Loss, binary_cross_entropy, cross_entropy
from jaxfast.messages import first, nearest
from jaxfast.models import ClassifierHead, ImageClassifier, efficientnet_lite, resnet
from jaxfast.pretrained import load_body
from jaxfast.training.state import init_variables

_HELD_OUT = ("valid", "val", "test")


class Architecture(NamedTuple):
    """A body, and the statistics of the pixels that its published weights were trained on (0..255 units)."""

    body: Callable[[], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]


ARCHITECTURES = {
    "resnet18": Architecture(resnet.resnet18, resnet.MEAN, resnet.STD),
    "resnet34": Architecture(resnet.resnet34, resnet.MEAN, resnet.STD),
    "resnet50": Architecture(resnet.resnet50, resnet.MEAN, resnet.STD),
    "resnet101": Architecture(resnet.resnet101, resnet.MEAN, resnet.STD),
    "resnet152": Architecture(resnet.resnet152, resnet.MEAN, resnet.STD),
    "efficientnet_lite0": Architecture(
        efficientnet_lite.efficientnet_lite0, efficientnet_lite.MEAN, efficientnet_lite.STD
    ),
}
"""The names that `learner` takes."""


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
    files = image_files(path)
    names = [file.relative_to(path).as_posix() for file in files]
    loose = [name for name in names if "/" not in name]
    if loose:
        raise ValueError(
            f"{first(loose)}: directly in {path}, in no class folder; put images into folders named after their class"
        )
    tops = {name.split("/")[0] for name in names if name.count("/") >= 2}
    if isinstance(valid, float) and "train" in tops and tops.intersection(_HELD_OUT):
        held_out = [top for top in _HELD_OUT if top in tops]
        raise ValueError(
            f"{path} has the folders train and {first(held_out)}, which valid={valid} would mix: "
            f"say valid={held_out[0]!r}, or give {Path(path, 'train')}"
        )
    labels = label_classes(
        [file.parent.name for file in files],
        classes,
        source=f"the class folders of {path}",
        where=lambda i: names[i],
    )
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
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3, 4)):
        swap = images.ndim == 4 and images.shape[1] in (1, 3, 4)
        wanted = "images.transpose(0, 2, 3, 1)" if swap else "(n, height, width) or (n, height, width, 1, 3 or 4)"
        raise ValueError(f"images have the shape {images.shape}: give {wanted}")
    check_pixels(images, "images")
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
    columns = list(df.columns)
    for name in (image, label):
        if name not in columns:
            raise ValueError(f"no column {name!r}: the columns are {first(columns, 20)}{nearest(name, columns)}")
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
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise ValueError(f"a source needs len() and [i], a {type(source).__name__} lacks them: give a list, for one")
    n = len(source)
    if not n:
        raise ValueError("the source is empty: give at least two examples")
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda i: image_and_label(source, i)[1], range(n))
        labels = list(tracked(read, "reading labels", n > 5000, n))
    return image_data(
        SourceImages(source), any_labels(labels, classes), named=classes is not None, valid=valid, seed=seed,
        size=size, presize=presize, batch_size=batch_size, augment=augment, resize=resize, channels=channels,
        on_error=on_error,
    )  # fmt: skip


def learner(
    data: ImageData,
    arch: str,
    *,
    pretrained: bool | str | os.PathLike = True,
    metrics: Sequence[str | Callable] | None = None,
    loss: Loss | None = None,
    hidden: Sequence[int] = (512,),
    dropout: float = 0.5,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """A classifier for `data`: the body `arch` (a name of `ARCHITECTURES`) under fastai's head.

    `pretrained`: True for the architecture's documented source of ImageNet weights (`pretrained.weights_path`), the
    path of a .pth or .safetensors file, or False for random weights. `hidden` and `dropout` are `ClassifierHead`'s.
    By default the loss is cross entropy and the metric accuracy; for any number of labels per image, binary cross
    entropy and accuracy_multi. `options` are `Learner`'s. Raises ValueError for an unknown architecture and for what
    `Learner` and the weights' reader refuse.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {arch!r}: give one of {first(list(ARCHITECTURES), 20)}{nearest(arch, ARCHITECTURES)}"
        )
    body, mean, std = ARCHITECTURES[arch]
    if data.channels != len(mean):
        if pretrained is not False:
            raise ValueError(
                f"the weights of {arch} see {len(mean)} channels, the data has {data.channels}: "
                "make the data with channels=3, or give pretrained=False"
            )
        mean, std = (float(np.mean(mean)),) * data.channels, (float(np.mean(std)),) * data.channels
    module = ImageClassifier(body(), ClassifierHead(data.n_out, tuple(hidden), dropout), mean, std)
    multi = data.task == "multi_label"
    variables = None
    if pretrained is not False:
        variables = _with_body_of(arch, pretrained, module, data, seed)
    return Learner(
        data,
        module,
        loss=loss or (binary_cross_entropy if multi else cross_entropy),
        metrics=(("accuracy_multi",) if multi else ("accuracy",)) if metrics is None else metrics,
        variables=variables,
        seed=seed,
        **options,
    )


def _with_body_of(arch: str, source, module: ImageClassifier, data: ImageData, seed: int) -> dict:
    """Variables with the body's read from a file, and a fresh head, without initializing a body to throw away."""
    image = jax.ShapeDtypeStruct((1, *data.size, data.channels), np.uint8)
    key = jax.random.key(seed)
    shapes = jax.eval_shape(module.init, key, image)
    variables = load_body(shapes, arch, source)
    features = jax.eval_shape(partial(module.apply, method="features"), shapes, image)[module.block_names[-1]]
    head = init_variables(module.head, key, jax.numpy.zeros(features.shape, features.dtype))
    return {kind: {**tree, "head": head[kind]} for kind, tree in variables.items()}
