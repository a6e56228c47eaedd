"""The object that a learner reads: two sets of images, how to treat them, and how it is put together."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfast.augment import center_crop, image_augment
from jaxfast.data.dataset import ImageDataset
from jaxfast.data.image_codec import ImageCodec
from jaxfast.data.images import RESIZES, SkippedImages, pair
from jaxfast.data.labels import Labels
from jaxfast.data.prediction import Prediction
from jaxfast.data.split import split_indices
from jaxfast.messages import first, nearest
from jaxfast.mix import unmixed
from jaxfast.plot import show_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Size = int | tuple[int, int]
Valid = float | str | Sequence[Any] | np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Training and validation images with all that a learner needs to know of them.

    `inputs` are the batch entries that the module takes; `task` is "single_label" (int32 targets) or "multi_label"
    (multi-hot rows); `size` is what the module sees, (height, width), after `augment(key, batch)` in training and
    `prepare(batch)` otherwise, both on the device, None where there is nothing to do.
    """

    train: ImageDataset
    valid: ImageDataset
    classes: tuple[str, ...]
    task: str
    batch_size: int
    size: tuple[int, int]
    seed: int
    augment: Callable | None
    prepare: Callable | None
    inputs: tuple[str, ...] = ("image",)

    @property
    def n_out(self) -> int:
        """How many outputs a model of this data has: one per class."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.channels

    @property
    def codec(self) -> ImageCodec:
        """How an item becomes an example and probabilities an answer: what an export stores."""
        return ImageCodec(self.train.size, self.train.resize, self.channels, self.classes, self.task)

    def label(self, target: np.ndarray | int) -> str:
        """The name of a target: its class, or all of its classes."""
        return self.codec.label(target)

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """What a data set would hold of an item: `ImageCodec.encode`."""
        return self.codec.encode(item)

    def decode(self, probabilities: np.ndarray) -> Prediction:
        """What the probabilities of one item say: `ImageCodec.decode`."""
        return self.codec.decode(probabilities)

    def show_results(self, examples: Sequence[Mapping], predictions: Sequence[Prediction]) -> "Figure":
        """Draw examples under the predicted label and the true one, in red where they differ."""
        truths = [self.label(example["target"]) for example in examples]
        titles = [f"{p.label}\n(is {truth})" for p, truth in zip(predictions, truths, strict=True)]
        wrong = [p.label != truth for p, truth in zip(predictions, truths, strict=True)]
        return show_images([example["image"] for example in examples], titles, wrong=wrong)

    def show_batch(self, n: int = 9, *, seed: int = 0) -> "Figure":
        """Draw `n` training images as a model sees them, augmented, under the names of their labels."""
        import jax

        rng = np.random.default_rng(seed)
        batch = self.train.batch(rng.permutation(len(self.train))[:n])
        augment = unmixed(self.augment)
        if augment is not None:
            batch = jax.jit(augment)(jax.random.key(seed), batch)
        titles = [self.label(target) for target in np.asarray(batch["target"])]
        return show_images(np.asarray(batch["image"]), titles)

    def __repr__(self) -> str:
        height, width = self.size
        stored = "" if self.size == self.train.size else ", cut from {}x{}".format(*self.train.size)
        return (
            f"ImageData: {len(self.train)} training and {len(self.valid)} validation images, "
            f"{len(self.classes)} classes ({first(self.classes, 10)})\n"
            f"  {height}x{width} pixels{stored}, {self.channels} channels, batches of {self.batch_size}, "
            f"{'one label' if self.task == 'single_label' else 'any number of labels'} each"
        )


def image_data(
    items: Any,
    labels: Labels,
    *,
    names: Sequence[str] | None = None,
    named: bool,
    valid: Valid,
    seed: int,
    size: Size,
    presize: Size | None,
    batch_size: int,
    augment: bool | Callable,
    resize: str,
    channels: int,
    on_error: str,
) -> ImageData:
    """What all front doors share: check the settings, split, drop what cannot be read, settle the augmentation."""
    size = _checked_size(size, "size")
    presize = size if presize is None else _checked_size(presize, "presize")
    if presize[0] < size[0] or presize[1] < size[1]:
        raise ValueError(
            f"presize={_x(presize)} is smaller than size={_x(size)}: give at least the size, or leave it out"
        )
    if presize != size and size[0] != size[1]:
        raise ValueError(
            f"size={_x(size)} with presize={_x(presize)}: crops are square; give one number, or no presize"
        )
    for name, value, known in (
        ("resize", resize, RESIZES), ("on_error", on_error, ("raise", "skip")), ("channels", channels, (3, 1)),
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown: give one of {first(known)}{nearest(value, known)}")
    if not (isinstance(augment, bool) or callable(augment)):
        raise ValueError(f"augment={augment!r}: give True, False or a function (key, batch) -> batch")
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give a whole number from 1 on")

    single = labels.task == "single_label"
    parts = split_indices(len(labels.targets), valid, seed=seed, labels=labels.targets if single else None, names=names)
    train, held_out = (ImageDataset(items, part, labels.targets[part], presize, resize, channels) for part in parts)
    if on_error == "skip":
        train, held_out = _readable(train, held_out)
    if single and not named:
        untrained = np.setdiff1d(held_out.targets, train.targets)
        if len(untrained):
            missing = first([labels.classes[i] for i in untrained])
            raise ValueError(f"no training image is of class {missing}, only validation images: move some, or drop it")
    if single and (train.targets == train.targets[0]).all():
        only = labels.classes[train.targets[0]]
        raise ValueError(f"all {len(train)} training images are of class {only!r}: choose another valid=")
    n = len(train)
    if batch_size > n:
        raise ValueError(f"batch_size={batch_size} is more than the {n} training images: give batch_size={n} or less")

    crop = None if presize == size else center_crop(size[0])
    if augment is True:
        augment = image_augment(None if crop is None else size[0])
    elif augment is False:
        augment = None if crop is None else lambda key, batch: crop(batch)
    return ImageData(
        train=train, valid=held_out, classes=labels.classes, task=labels.task, batch_size=int(batch_size), size=size,
        seed=seed, augment=augment, prepare=crop,
    )  # fmt: skip


def _checked_size(size: Size, name: str) -> tuple[int, int]:
    sides = (size, size) if np.ndim(size) == 0 else tuple(size)
    whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side >= 2 for side in sides)
    if len(sides) != 2 or not whole:
        raise ValueError(f"{name}={size!r}: give a side in pixels such as 224, or (height, width)")
    return pair(size)


def _x(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _readable(*datasets: ImageDataset) -> list[ImageDataset]:
    """The data sets without the images that cannot be read, which one warning names."""
    broken = [dataset.unreadable() for dataset in datasets]
    names = [name for part in broken for name in part.values()]
    total = sum(len(dataset) for dataset in datasets)
    if names:
        message = f"skipped {len(names)} of {total} images that cannot be read: {first(names)}"
        warnings.warn(message, SkippedImages, stacklevel=4)  # at the caller of vision.from_...
    kept = []
    for dataset, part, name in zip(datasets, broken, ("training", "validation"), strict=True):
        keep = np.setdiff1d(np.arange(len(dataset)), list(part))
        if not len(keep):
            raise ValueError(f"none of the {len(dataset)} {name} images can be read, such as {first(names, 1)}")
        kept.append(dataclasses.replace(dataset, index=dataset.index[keep], targets=dataset.targets[keep]))
    return kept
