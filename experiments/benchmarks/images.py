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


def classifier(arch: str, classes: int, body: Mapping | None = None):
    """An ImageClassifier with ImageNet's head over the body `arch` with its options `body`."""
    from jaxfast import vision
    from jaxfast.models import ImageClassifier, LinearHead

    made = vision.ARCHITECTURES[arch]
    return ImageClassifier(made.body(**(body or {})), LinearHead(classes), made.mean, made.std)


def torch_classifier(arch: str, classes: int, body: Mapping | None = None):
    """The same architecture in torch."""
    from experiments.benchmarks import torch_models
    from jaxfast import vision

    made = vision.ARCHITECTURES[arch]
    pixels = torch_models.Pixels(made.mean, made.std)
    if arch == "efficientnet_lite0":
        return torch_models.EfficientNetLite(classes, pixels, **(body or {}))
    sizes, bottleneck = {
        "resnet18": ((2, 2, 2, 2), False),
        "resnet34": ((3, 4, 6, 3), False),
        "resnet50": ((3, 4, 6, 3), True),
    }[arch]
    options = dict(body or {})
    return torch_models.ResNet(options.pop("stage_sizes", sizes), bottleneck, classes, pixels, **options)


def ours(
    folder: str,
    arch: str,
    size: int,
    images: int,
    steps_: int,
    classes: int,
    precision: str = "fp32",
    body: Mapping | None = None,
    options: Mapping | None = None,
) -> Side:
    """`options`: of XLA's compiler."""
    from jaxfast import losses
    from jaxfast.pretrained import to_torch_names

    side, variables = steps.ours(
        classifier(arch, classes, body), batch(size, images, classes), losses.cross_entropy,
        inputs=("image",), steps=steps_, work=images, precision=precision, options=options,
    )  # fmt: skip
    steps.leave(folder, to_torch_names(variables, arch))
    return side


def theirs(
    folder: str,
    arch: str,
    size: int,
    images: int,
    steps_: int,
    classes: int,
    precision: str = "fp32",
    body: Mapping | None = None,
    options: Mapping | None = None,
    **variant,
) -> Side:
    from torch.nn.functional import cross_entropy

    from experiments.benchmarks.torch_models import load

    given = batch(size, images, classes)
    return steps.theirs(
        load(torch_classifier(arch, classes, body), steps.found(folder)), [given["image"].transpose(0, 3, 1, 2)],
        given["target"].astype(np.int64), cross_entropy, steps=steps_, work=images, precision=precision, **variant,
    )  # fmt: skip


VARIANTS = {
    "torch": theirs,
    "torch channels_last": partial(theirs, channels_last=True),
    "torch.compile": partial(theirs, channels_last=True, compiled="default"),
}
ON_GPU = {
    "torch channels_last, autocast": partial(theirs, channels_last=True),
    "torch.compile": partial(theirs, channels_last=True, compiled="default"),
}
"""Without CUDA graphs: a step of this size does not wait for its launches, and compiling once more takes a minute."""
TINY = {"stage_sizes": (1, 1), "width": 8}
"""Options of a ResNet that compiles in seconds."""
SMALLER = {
    **dict.fromkeys(("resnet18", "resnet50"), {"body": TINY}),
    "efficientnet_lite0": {"body": {"depth": 0.2}},
}
"""What compiles in seconds instead of an architecture, where it need only be shown that a row works."""


def workload(
    title: str,
    arch: str,
    size: int,
    images: int,
    steps_: int,
    variants: Mapping = VARIANTS,
    *,
    options: Mapping | None = None,
    **rest,
) -> Workload:
    """A row of an architecture, with ImageNet's 1,000 classes; `options` of XLA's compiler, `rest` of a Workload."""
    common = {"arch": arch, "precision": rest.get("precision", "fp32"), "options": dict(options or {})}
    return Workload(
        title, ours, variants, common | {"size": size, "images": images, "steps_": steps_, "classes": 1000},
        common | SMALLER.get(arch, {}) | {"size": 32, "images": 8, "steps_": 2, "classes": 10, "precision": "fp32"},
        unit="images", **rest,
    )  # fmt: skip
