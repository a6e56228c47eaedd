"""The front door for images: data from where they are (`data.image_from`), and a learner for them."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxfast.data.image_data import ImageData
from jaxfast.data.image_from import from_arrays, from_folder, from_frame, from_packed, from_source, from_tfds
from jaxfast.learner import Learner
from jaxfast.losses import Loss, binary_cross_entropy, cross_entropy
from jaxfast.messages import check_number, check_type, first, nearest
from jaxfast.models import ClassifierHead, ImageClassifier, efficientnet_lite, resnet
from jaxfast.pretrained import adapt_statistics, find_weights, load_body
from jaxfast.training.state import init_variables

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "from_arrays",
    "from_folder",
    "from_frame",
    "from_packed",
    "from_source",
    "from_tfds",
    "learner",
]


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
    path of a .pth or .safetensors file, a repository of the Hugging Face hub such as "timm/resnet50.a1_in1k" (which
    also gives the pixels' mean and deviation: `pretrained.find_weights`), or False for random weights. Weights for RGB
    are adapted to grey images by timm's rule. `hidden` and `dropout` are `ClassifierHead`'s.
    By default the loss is cross entropy and the metric accuracy; for any number of labels per image, binary cross
    entropy and accuracy_multi. `options` are `Learner`'s. Raises ValueError for an unknown architecture and for what
    `Learner` and the weights' reader refuse.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {arch!r}: give one of {first(list(ARCHITECTURES), 20)}{nearest(arch, ARCHITECTURES)}"
        )
    check_type("data", data, ImageData, "vision.from_folder or another vision.from_...")
    check_number("dropout", dropout, 0, 1)
    if not isinstance(hidden, Sequence) or not all(isinstance(width, int) and width > 0 for width in hidden):
        raise ValueError(f"hidden={hidden!r}: give the widths of the head's layers, such as (512,)")
    body, mean, std = ARCHITECTURES[arch]
    if pretrained is not False:
        weights = find_weights(arch, pretrained)
        mean, std = weights.mean or mean, weights.std or std
    mean, std = adapt_statistics(mean, data.channels), adapt_statistics(std, data.channels)
    module = ImageClassifier(body(), ClassifierHead(data.n_out, tuple(hidden), dropout), mean, std)
    multi = data.task == "multi_label"
    variables = None
    if pretrained is not False:
        variables = _with_body_of(arch, weights.path, module, data, seed)
    return Learner(
        data,
        module,
        loss=loss or (binary_cross_entropy if multi else cross_entropy),
        metrics=(("accuracy_multi",) if multi else ("accuracy",)) if metrics is None else metrics,
        variables=variables,
        seed=seed,
        **options,
    )


def _with_body_of(arch: str, path: os.PathLike, module: ImageClassifier, data: ImageData, seed: int) -> dict:
    """Variables with the body's read from a file, and a fresh head, without initializing a body to throw away."""
    image = jax.ShapeDtypeStruct((1, *data.size, data.channels), np.uint8)
    key = jax.random.key(seed)
    shapes = jax.eval_shape(module.init, key, image)
    variables = load_body(shapes, arch, path)
    features = jax.eval_shape(partial(module.apply, method="features"), shapes, image)[module.block_names[-1]]
    head = init_variables(module.head, key, jax.numpy.zeros(features.shape, features.dtype))
    return {kind: {**tree, "head": head[kind]} for kind, tree in variables.items()}
