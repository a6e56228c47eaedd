"""The object that a learner reads: two sets of images, how to treat them, and how it is put together."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxfast.augment import CenterCrop, ImageAugment, center_crop, image_augment
from jaxfast.data.dataset import ImageDataset
from jaxfast.data.image_codec import ImageCodec
from jaxfast.data.images import RESIZES, SkippedImages, pair
from jaxfast.data.labels import Labels
from jaxfast.data.points import to_pixels
from jaxfast.data.prediction import KeyPoints, Prediction, Segmentation, Value
from jaxfast.data.split import split_indices
from jaxfast.messages import first, nearest
from jaxfast.mix import Composed, compose, unmixed
from jaxfast.plot import show_images, show_masks, show_points, show_segmentation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Size = int | tuple[int, int]
Valid = float | str | Sequence[Any] | np.ndarray

_MOVES = {"segmentation": "mask", "points": "points"}
"""What of a task's targets lies in the image and moves with it."""
_EACH = {
    "single_label": "one label each",
    "multi_label": "any number of labels each",
    "segmentation": "a class for every pixel",
    "regression": "numbers to predict",
    "points": "places to predict",
}


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Training and validation images with all that a learner needs to know of them.

    `inputs` are the batch entries that the module takes; `task` is "single_label" (int32 targets), "multi_label"
    (multi-hot rows), "segmentation" (masks, uint8 (height, width), 255 void), "regression" (float32 (k,)) or "points"
    (float32 (k, 2), (x, y) in -1..1); `classes` name the classes, or the k numbers or points. `size` is what the module
    sees, (height, width), after `augment(key, batch)` in training and `prepare(batch)` otherwise, both on the device,
    None where there is nothing to do.
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
        """How many outputs a model of this data has: one per class or number, two per point; of masks, per pixel."""
        return len(self.classes) * (2 if self.task == "points" else 1)

    @property
    def channels(self) -> int:
        return self.train.channels

    @property
    def codec(self) -> ImageCodec:
        """How an item becomes an example and a model's output an answer: what an export stores."""
        return ImageCodec(self.train.size, self.train.resize, self.channels, self.classes, self.task, self.size)

    def resized(self, size: Size, presize: Size | None = None) -> "ImageData":
        """The same images, split in the same way, for a model that sees `size` (progressive resizing).

        `presize` keeps its ratio to `size` unless given. What `augment=True` and `image_augment` do, and what
        `compose` puts together of them, is done at the new size; a function of your own is kept as it is. Raises
        ValueError for sizes that `vision.from_...` refuses, and for a function whose images have another size.
        """
        size = _checked_size(size, "size")
        if presize is None:
            grown = [new * stored / old for new, stored, old in zip(size, self.train.size, self.size, strict=True)]
            presize = tuple(round(side) for side in grown)
        presize = _checked_presize(presize, size)
        target, cropped = _MOVES.get(self.task), presize != size
        crop = center_crop(size[0], target=target) if cropped else None
        augment = _at_size(self.augment, size[0] if cropped else None, crop)
        data = dataclasses.replace(
            self, size=size, augment=crop if augment is None else augment, prepare=crop,
            train=dataclasses.replace(self.train, size=presize), valid=dataclasses.replace(self.valid, size=presize),
        )  # fmt: skip
        if data.augment is not None:
            batch = {name: value[None] for name, value in data.train[0].items()}
            made = jax.eval_shape(data.augment, jax.random.key(0), batch)["image"].shape[1:3]
            if made != size:
                raise ValueError(
                    f"augment makes images of {made[0]}x{made[1]} pixels, the new size is {size[0]}x{size[1]}: "
                    "it has a size of its own, replace it with dataclasses.replace(data, augment=...)"
                )
        return data

    def label(self, target: np.ndarray | int) -> str:
        """A target in words: `ImageCodec.label`."""
        return self.codec.label(target)

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """What a data set would hold of an item: `ImageCodec.encode`."""
        return self.codec.encode(item)

    def decode(self, outputs: np.ndarray) -> Prediction | Segmentation | Value | KeyPoints:
        """What the activated outputs of one item say: `ImageCodec.decode`."""
        return self.codec.decode(outputs)

    def show_results(self, examples: Sequence[Mapping], predictions: Sequence[Any]) -> "Figure":
        """Draw examples with what is predicted and what is true: labels and numbers above, wrong labels in red; masks
        side by side; points as crosses and rings."""
        images, targets = ([example[name] for example in examples] for name in ("image", "target"))
        if self.task == "points":
            truths = [to_pixels(target, self.train.size) for target in targets]
            return show_points(images, truths, self.classes, predictions=[p.points for p in predictions])
        if self.task == "segmentation":
            batch = {"image": np.stack(images), "target": np.stack(targets)}
            batch = batch if self.prepare is None else self.prepare(batch)
            masks = [p.mask for p in predictions]
            return show_segmentation(*(np.asarray(batch[name]) for name in ("image", "target")), masks, self.classes)
        truths = [self.label(target) for target in targets]
        if self.task == "regression":
            said = [self.label(np.atleast_1d(p.value)) for p in predictions]
            return show_images(images, [f"{p}\n(is {truth})" for p, truth in zip(said, truths, strict=True)])
        titles = [f"{p.label}\n(is {truth})" for p, truth in zip(predictions, truths, strict=True)]
        wrong = [p.label != truth for p, truth in zip(predictions, truths, strict=True)]
        return show_images(images, titles, wrong=wrong)

    def show_batch(self, n: int = 9, *, seed: int = 0) -> "Figure":
        """Draw `n` training images as a model sees them, augmented, with their labels, masks or points."""
        rng = np.random.default_rng(seed)
        batch = self.train.batch(rng.permutation(len(self.train))[:n])
        augment = unmixed(self.augment)
        if augment is not None:
            batch = jax.jit(augment)(jax.random.key(seed), batch)
        images, targets = np.asarray(batch["image"]), np.asarray(batch["target"])
        if self.task == "segmentation":
            return show_masks(images, targets, self.classes)
        if self.task == "points":
            return show_points(images, to_pixels(targets, images.shape[1:3]), self.classes)
        return show_images(images, [self.label(target) for target in targets])

    def __repr__(self) -> str:
        height, width = self.size
        stored = "" if self.size == self.train.size else ", cut from {}x{}".format(*self.train.size)
        what = {"regression": "number", "points": "point"}.get(self.task, "class")
        many = "" if len(self.classes) == 1 else "es" if what == "class" else "s"
        return (
            f"ImageData: {len(self.train)} training and {len(self.valid)} validation images, "
            f"{len(self.classes)} {what}{many} ({first(self.classes, 10)})\n"
            f"  {height}x{width} pixels{stored}, {self.channels} channels, batches of {self.batch_size}, "
            f"{_EACH[self.task]}"
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
    presize = _checked_presize(size if presize is None else presize, size)
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

    target = _MOVES.get(labels.task)
    crop = None if presize == size else center_crop(size[0], target=target)
    if augment is True:
        augment = image_augment(None if crop is None else size[0], target=target)
    elif augment is False:
        augment = crop
    else:
        augment = _mapped(augment, lambda given: dataclasses.replace(given, target=target))
    return ImageData(
        train=train, valid=held_out, classes=labels.classes, task=labels.task, batch_size=int(batch_size), size=size,
        seed=seed, augment=augment, prepare=crop,
    )  # fmt: skip


def _mapped(augment: Callable | None, change: Callable) -> Callable | None:
    """`augment` with every `ImageAugment` and `CenterCrop` in it changed."""
    if isinstance(augment, Composed):
        return compose(*(_mapped(transform, change) for transform in augment.transforms))
    return change(augment) if isinstance(augment, (ImageAugment, CenterCrop)) else augment


def _at_size(augment: Callable | None, side: int | None, crop: CenterCrop | None) -> Callable | None:
    """`augment` for crops of `side` pixels, None for whole images."""
    change = lambda given: crop if isinstance(given, CenterCrop) else dataclasses.replace(given, size=side)
    return _mapped(augment, change)


def _checked_presize(presize: Size, size: tuple[int, int]) -> tuple[int, int]:
    presize = _checked_size(presize, "presize")
    if presize[0] < size[0] or presize[1] < size[1]:
        raise ValueError(
            f"presize={_x(presize)} is smaller than size={_x(size)}: give at least the size, or leave it out"
        )
    if presize != size and size[0] != size[1]:
        raise ValueError(
            f"size={_x(size)} with presize={_x(presize)}: crops are square; give one number, or no presize"
        )
    return presize


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
