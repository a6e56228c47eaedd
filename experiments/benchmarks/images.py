"""A training step of an image classifier on one batch, whatever the architecture: rows of `resnet` and `lite`."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from experiments.benchmarks import steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side


def batch(size: int, images: int, classes: int) -> dict[str, np.ndarray]:
    """Noise, and labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, size, size, 3)).astype(np.uint8)
    return {"image": pixels, "target": rng.integers(0, classes, images).astype(np.int32)}


def classifier(arch: str, classes: int):
    """An ImageClassifier with ImageNet's head."""
    from jaxfast import vision
    from jaxfast.models import ImageClassifier, LinearHead

    made = vision.ARCHITECTURES[arch]
    return ImageClassifier(made.body(), LinearHead(classes), made.mean, made.std)


def torch_classifier(arch: str, classes: int):
    """The same architecture in torch."""
    from experiments.benchmarks import torch_models
    from jaxfast import vision

    made = vision.ARCHITECTURES[arch]
    pixels = torch_models.Pixels(made.mean, made.std)
    if arch == "efficientnet_lite0":
        return torch_models.EfficientNetLite(classes, pixels)
    sizes, bottleneck = {
        "resnet18": ((2, 2, 2, 2), False),
        "resnet34": ((3, 4, 6, 3), False),
        "resnet50": ((3, 4, 6, 3), True),
    }[arch]
    return torch_models.ResNet(sizes, bottleneck, classes, pixels)


def ours(folder: str, arch: str, size: int, images: int, steps_: int, classes: int, precision: str = "fp32") -> Side:
    from jaxfast import losses
    from jaxfast.pretrained import to_torch_names

    side, variables = steps.ours(
        classifier(arch, classes), batch(size, images, classes), losses.cross_entropy,
        inputs=("image",), steps=steps_, work=images, precision=precision,
    )  # fmt: skip
    steps.leave(folder, to_torch_names(variables, arch))
    return side


def theirs(
    folder: str, arch: str, size: int, images: int, steps_: int, classes: int, precision: str = "fp32", **variant
) -> Side:
    from torch.nn.functional import cross_entropy

    from experiments.benchmarks.torch_models import load

    given = batch(size, images, classes)
    return steps.theirs(
        load(torch_classifier(arch, classes), steps.found(folder)), [given["image"].transpose(0, 3, 1, 2)],
        given["target"].astype(np.int64), cross_entropy, steps=steps_, work=images, precision=precision, **variant,
    )  # fmt: skip


VARIANTS = {
    "torch": theirs,
    "torch channels_last": partial(theirs, channels_last=True),
    "torch.compile": partial(theirs, channels_last=True, compiled="default"),
}


def workload(
    title: str, arch: str, size: int, images: int, steps_: int, variants: Mapping = VARIANTS, **options
) -> Workload:
    """A row of an architecture, with ImageNet's 1,000 classes."""
    common = {"arch": arch, "precision": options.get("precision", "fp32")}
    return Workload(
        title, ours, variants, common | {"size": size, "images": images, "steps_": steps_, "classes": 1000},
        common | {"size": 64, "images": 8, "steps_": 2, "classes": 10}, unit="images", **options,
    )  # fmt: skip
