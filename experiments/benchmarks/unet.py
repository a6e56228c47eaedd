"""A training step of a U-Net over ResNet-34, in bf16."""

from collections.abc import Mapping
from functools import partial

import numpy as np

from experiments.benchmarks import images, steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side

ARCH = "resnet34"


def batch(size: int, count: int, classes: int) -> dict[str, np.ndarray]:
    """Noise, and a class for every pixel."""
    masks = np.random.default_rng(1).integers(0, classes, (count, size, size)).astype(np.uint8)
    return images.batch(size, count, classes) | {"target": masks}


def ours(
    folder: str, size: int, count: int, steps_: int, classes: int, precision: str, body: Mapping | None = None
) -> Side:
    from jaxfast import losses, vision
    from jaxfast.models import DynamicUnet

    made = vision.ARCHITECTURES[ARCH]
    side, variables = steps.ours(
        DynamicUnet(made.body(**(body or {})), classes, made.mean, made.std), batch(size, count, classes),
        losses.segmentation_cross_entropy, inputs=("image",), steps=steps_, work=count, precision=precision,
    )  # fmt: skip
    steps.leave(folder, torch_names(variables))
    return side


def torch_names(variables) -> dict[str, np.ndarray]:
    """Weights under the names of the torch model below."""
    from flax.traverse_util import flatten_dict

    from jaxfast.pretrained import to_torch_names

    body = to_torch_names({kind: {"body": tree["body"]} for kind, tree in variables.items()}, ARCH)
    found = {f"body.{name}": array for name, array in body.items()}
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for (_, part, *path, leaf), array in flatten_dict(variables).items():
        if part == "head":
            array = np.asarray(array).transpose(3, 2, 0, 1) if np.ndim(array) == 4 else np.asarray(array)
            if "shuffle" in path:  # torch has the four pixels of a channel side by side
                array = array.reshape(4, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
            found[".".join([*path, leaves[leaf]])] = array
    return found


def unet(classes: int, body: Mapping | None = None):
    """fastai's DynamicUnet in torch, over ResNet-34 with the options `body`."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    conv = lambda a, b, size: nn.Conv2d(a, b, size, padding=size // 2)

    class Shuffle(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = conv(inputs, 4 * outputs, 1)

        def forward(self, x):
            return F.pixel_shuffle(F.relu(self.conv(x), inplace=True), 2)

    class Block(nn.Module):
        def __init__(self, below, skip, halve):
            super().__init__()
            both = below // 2 + skip
            width = both // 2 if halve else both
            self.shuffle, self.norm = Shuffle(below, below // 2), nn.BatchNorm2d(skip)
            self.conv1, self.conv2, self.width = conv(both, width, 3), conv(width, width, 3), width

        def forward(self, x, skip):
            x = F.relu(torch.cat([self.shuffle(x), self.norm(skip)], 1))
            return F.relu(self.conv2(F.relu(self.conv1(x), inplace=True)), inplace=True)

    class Unet(nn.Module):
        def __init__(self, stage_sizes=(3, 4, 6, 3), width=64):
            super().__init__()
            self.body = images.torch_classifier(ARCH, 0, body)
            *skips, last = width, *(width << stage for stage in range(len(stage_sizes)))
            self.norm = nn.BatchNorm2d(last)
            self.middle1, self.middle2 = conv(last, 2 * last, 3), conv(2 * last, last, 3)
            self.depth, width = len(skips), last
            for i, skip in enumerate(reversed(skips)):
                block = Block(width, skip, i == self.depth - 1)
                setattr(self, f"block{i}", block)
                width = block.width
            self.shuffle, width = Shuffle(width, width), width + 3
            self.cross1, self.cross2, self.output = (
                conv(width, width, 3),
                conv(width, width, 3),
                conv(width, classes, 1),
            )

        def forward(self, pixels):
            seen = self.body.pixels(pixels)
            *skips, x = self.body.maps(seen)
            x = F.relu(self.middle1(F.relu(self.norm(x))), inplace=True)
            x = F.relu(self.middle2(x), inplace=True)
            for i, skip in enumerate(reversed(skips)):
                x = getattr(self, f"block{i}")(x, skip)
            x = torch.cat([self.shuffle(x), seen], 1)
            x = F.relu(x + F.relu(self.cross2(F.relu(self.cross1(x), inplace=True)), inplace=True), inplace=True)
            return self.output(x)

    return Unet(**(body or {}))


def theirs(
    folder: str,
    size: int,
    count: int,
    steps_: int,
    classes: int,
    precision: str,
    body: Mapping | None = None,
    **variant,
) -> Side:
    from torch.nn.functional import cross_entropy

    from experiments.benchmarks.torch_models import load

    given = batch(size, count, classes)
    return steps.theirs(
        load(unet(classes, body), steps.found(folder)), [given["image"].transpose(0, 3, 1, 2)],
        given["target"].astype(np.int64), cross_entropy, steps=steps_, work=count, precision=precision, **variant,
    )  # fmt: skip


WORKLOADS = {
    "unet": Workload(
        "U-Net over ResNet-34, 256 px, batch 32, bf16: training step",
        ours,
        {
            "torch channels_last, autocast": partial(theirs, channels_last=True),
            "torch.compile": partial(theirs, channels_last=True, compiled="default"),
        },
        {"size": 256, "count": 32, "steps_": 10, "classes": 12, "precision": "bf16"},
        {"size": 32, "count": 2, "steps_": 2, "classes": 3, "precision": "fp32", "body": images.TINY},
        unit="images",
        device="gpu",
        precision="bf16",
        tolerance=0.03,
    ),
}
