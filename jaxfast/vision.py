"""The front door for images: data from where they are (`data.image_from`), and a learner for them."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxfast import models
from jaxfast.data.image_data import ImageData
from jaxfast.data.image_from import from_arrays, from_folder, from_frame
from jaxfast.data.image_from_masks import from_masks
from jaxfast.data.image_from_records import from_packed, from_source, from_tfds
from jaxfast.learner import Learner
from jaxfast.losses import Loss, binary_cross_entropy, cross_entropy, mse, segmentation_cross_entropy
from jaxfast.messages import check_number, check_type, first, nearest
from jaxfast.models import ClassifierHead, DynamicUnet, ImageClassifier, efficientnet_lite, resnet
from jaxfast.pretrained import adapt_statistics, find_weights, load_body
from jaxfast.training.state import init_variables

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "from_arrays",
    "from_folder",
    "from_frame",
    "from_masks",
    "from_packed",
    "from_source",
    "from_tfds",
    "learner",
    "unet_learner",
]


class Architecture(NamedTuple):
    """A body, the statistics of the pixels that its published weights were trained on (0..255 units), and which of its
    blocks is the last that a U-Net uses."""

    body: Callable[[], nn.Module]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unet_last: int = -1


_IMAGENET = resnet.MEAN, resnet.STD
_LITE = efficientnet_lite.MEAN, efficientnet_lite.STD, -2
ARCHITECTURES = {
    "resnet18": Architecture(models.resnet18, *_IMAGENET),
    "resnet34": Architecture(models.resnet34, *_IMAGENET),
    "resnet50": Architecture(models.resnet50, *_IMAGENET),
    "resnet101": Architecture(models.resnet101, *_IMAGENET),
    "resnet152": Architecture(models.resnet152, *_IMAGENET),
    "xresnet18": Architecture(models.xresnet18, *_IMAGENET),
    "xresnet34": Architecture(models.xresnet34, *_IMAGENET),
    "xresnet50": Architecture(models.xresnet50, *_IMAGENET),
    "xresnet101": Architecture(models.xresnet101, *_IMAGENET),
    "densenet121": Architecture(models.densenet121, *_IMAGENET),
    "densenet161": Architecture(models.densenet161, *_IMAGENET),
    "densenet169": Architecture(models.densenet169, *_IMAGENET),
    "densenet201": Architecture(models.densenet201, *_IMAGENET),
    "vgg16": Architecture(models.vgg16, *_IMAGENET),
    "vgg16_bn": Architecture(models.vgg16_bn, *_IMAGENET),
    "vgg19": Architecture(models.vgg19, *_IMAGENET),
    "vgg19_bn": Architecture(models.vgg19_bn, *_IMAGENET),
    "efficientnet_lite0": Architecture(models.efficientnet_lite0, *_LITE),
    "efficientnet_lite1": Architecture(models.efficientnet_lite1, *_LITE),
    "efficientnet_lite2": Architecture(models.efficientnet_lite2, *_LITE),
}
"""The names that `learner` and `unet_learner` take."""


def learner(
    data: ImageData,
    arch: str,
    *,
    pretrained: bool | str | os.PathLike = True,
    metrics: Sequence[str | Callable] | None = None,
    loss: Loss | None = None,
    hidden: Sequence[int] = (512,),
    dropout: float = 0.5,
    y_range: tuple[float, float] | None = None,
    body: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """A model for `data`: the body `arch` (a name of `ARCHITECTURES`) under fastai's head.

    `pretrained`: True for the architecture's documented source of ImageNet weights (`pretrained.weights_path`), the
    path of a .pth or .safetensors file, a repository of the Hugging Face hub such as "timm/resnet50.a1_in1k" (which
    also gives the pixels' mean and deviation: `pretrained.find_weights`), or False for random weights. A learner over
    pretrained weights starts frozen (`unfreeze` it to train everything, as `fine_tune` does after its first cycle).
    Weights for RGB are adapted to grey images by timm's rule. `hidden` and `dropout` are `ClassifierHead`'s, `body`
    are options of the architecture, such as {"drop_path": .1} (stochastic depth) or an xResNet's {"attention": True}.
    By default the loss is cross entropy and the metric accuracy; for any number of labels per image, binary cross
    entropy and accuracy_multi; for numbers and points, mean squared error and rmse. `y_range`: the lowest and the
    highest number that a regression can answer, of points (-1, 1) by default, the borders of the image. `options` are
    `Learner`'s. Raises ValueError for an unknown architecture, masks, a `y_range` of classes, and for what `Learner`
    and the weights' reader refuse.
    """
    check_number("dropout", dropout, 0, 1)
    if not isinstance(hidden, Sequence) or not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(f"hidden={hidden!r}: give the widths of the head's layers, such as (512,)")
    made, mean, std, weights = _body(data, arch, pretrained, body or {})
    if data.task == "segmentation":
        raise ValueError("the targets are masks, a class for every pixel: use vision.unet_learner")
    n_out = (len(data.classes), 2) if data.task == "points" else data.n_out
    head = ClassifierHead(n_out, tuple(hidden), dropout, _checked_range(y_range, data.task))
    module = ImageClassifier(made, head, mean, std)
    default_loss, default_metric = _DEFAULTS[data.task]
    loss, metrics = loss or default_loss, (default_metric,) if metrics is None else metrics
    return _learner(data, module, arch, weights, loss=loss, metrics=metrics, seed=seed, **options)


def _learner(
    data: ImageData,
    module: ImageClassifier | DynamicUnet,
    arch: str,
    weights: os.PathLike | None,
    *,
    seed: int,
    **options: Any,
) -> Learner:
    """A learner of `module`; over weights from a file it starts frozen, as fastai's do."""
    variables = weights and _with_body_of(arch, weights, module, data, seed)
    made = Learner(data, module, variables=variables, seed=seed, **options)
    if weights is not None:
        made.freeze()
    return made


_DEFAULTS = {
    "single_label": (cross_entropy, "accuracy"),
    "multi_label": (binary_cross_entropy, "accuracy_multi"),
    "regression": (mse, "rmse"),
    "points": (mse, "rmse"),
}
"""The loss and the metric of a task."""


def _checked_range(y_range: Sequence[float] | None, task: str) -> tuple[float, float] | None:
    """`y_range`, or what a task has without one."""
    if y_range is None:
        return (-1.0, 1.0) if task == "points" else None
    if task not in ("regression", "points"):
        raise ValueError(f"y_range={y_range} bounds numbers, the targets are {task}: leave it out")
    if not isinstance(y_range, Sequence) or len(y_range) != 2 or not y_range[0] < y_range[1]:
        raise ValueError(f"y_range={y_range}: give (lowest, highest)")
    return tuple(map(float, y_range))


def unet_learner(
    data: ImageData,
    arch: str,
    *,
    pretrained: bool | str | os.PathLike = True,
    metrics: Sequence[str | Callable] = ("mean_iou",),
    loss: Loss | None = None,
    blur: bool = False,
    blur_final: bool = True,
    self_attention: bool = False,
    y_range: tuple[float, float] | None = None,
    last_cross: bool = True,
    bottleneck: bool = False,
    body: Mapping[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Learner:
    """A class for every pixel of `data`: a U-Net (`DynamicUnet`, which explains its options) over the body `arch`.

    `pretrained`, `body` and `options` as in `learner`. The loss is cross entropy over the pixels that are not VOID;
    others are `losses.dice`, `losses.focal`, `losses.pixel_mse`, and sums of them by `losses.weighted_sum`. Metrics of
    masks are mean_iou, dice and pixel_accuracy. Raises ValueError as `learner` does, for data without masks where no
    loss is given, and for images that are too small for the body.
    """
    made, mean, std, weights = _body(data, arch, pretrained, body or {})
    if loss is None and data.task != "segmentation":
        raise ValueError(
            f"a U-Net gives a class for every pixel, the targets are {data.task}: give data with masks, such as "
            "vision.from_masks makes, or use vision.learner"
        )
    if loss is None and y_range is not None:
        raise ValueError(f"y_range={y_range} bounds numbers, the targets are classes: leave it out, or give a loss")
    last = made.block_names[ARCHITECTURES[arch].unet_last]
    module = DynamicUnet(
        made, data.n_out, mean, std, blur, blur_final, self_attention, y_range, last_cross, bottleneck, last
    )  # fmt: skip
    loss = loss or segmentation_cross_entropy
    return _learner(data, module, arch, weights, loss=loss, metrics=metrics, seed=seed, **options)


def _body(data: ImageData, arch: str, pretrained: bool | str | os.PathLike, options: Mapping[str, Any]):
    """(body, mean, std, the file of its weights or None) of an architecture, for the channels of `data`."""
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {arch!r}: give one of {first(list(ARCHITECTURES), 20)}{nearest(arch, ARCHITECTURES)}"
        )
    check_type("data", data, ImageData, "vision.from_folder or another vision.from_...")
    make, mean, std, _ = ARCHITECTURES[arch]
    known = [field.name for field in dataclasses.fields(make()) if field.name not in ("parent", "name")]
    wrong = [name for name in options if name not in known]
    if wrong:
        raise ValueError(f"{arch} has no option {wrong[0]!r}: it has {first(known, 20)}{nearest(wrong[0], known)}")
    path = None
    if pretrained is not False:
        path, *found, _ = find_weights(arch, pretrained)
        mean, std = (new or old for new, old in zip(found, (mean, std), strict=True))
    return make(**options), adapt_statistics(mean, data.channels), adapt_statistics(std, data.channels), path


def _with_body_of(
    arch: str, path: os.PathLike, module: ImageClassifier | DynamicUnet, data: ImageData, seed: int
) -> dict:
    """Variables with the body's read from a file, and a fresh head, without initializing a body to throw away."""
    key, size = jax.random.key(seed), (1, *data.size, data.channels)
    body = jax.eval_shape(module.body.init, key, jax.ShapeDtypeStruct(size, module.body.dtype))
    variables = load_body({kind: {"body": tree} for kind, tree in body.items()}, arch, path)
    image = jax.ShapeDtypeStruct(size, np.uint8)
    # what the module has of the body, which a U-Net may not use to its end
    used = jax.eval_shape(partial(module.init, method="head_inputs"), key, image)
    inputs = jax.eval_shape(partial(module.apply, method="head_inputs"), used, image)
    head, _ = module.bind({}).head.unbind()
    head = init_variables(head, key, *jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), inputs))
    return {
        kind: {"body": {name: variables[kind]["body"][name] for name in tree["body"]}, "head": head[kind]}
        for kind, tree in used.items()
    }
