"""What random crop, flip, rotation, zoom, warp and lighting on the device cost beside the training step that they feed.

"theirs" is the same step on images that are not augmented; the ratio is what augmentation leaves of its speed.
"""

from collections.abc import Mapping

from experiments.benchmarks import images, steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side


def ours(
    folder: str,
    arch: str,
    size: int,
    presize: int,
    count: int,
    steps_: int,
    precision: str,
    body: Mapping | None = None,
    augmented: bool = True,
) -> Side:
    from jaxfast import losses
    from jaxfast.augment import image_augment

    given = images.batch(presize if augmented else size, count, 1000)
    return steps.ours(
        images.classifier(arch, 1000, body), given, losses.cross_entropy, inputs=("image",), steps=steps_,
        work=count, precision=precision, augment=image_augment(size) if augmented else None,
    )[0]  # fmt: skip


def plain(folder: str, **options) -> Side:
    return ours(folder, **options, augmented=False)


WORKLOADS = {
    "augment": Workload(
        "ResNet-50, 224 px, batch 256, bf16: step with augmentation beside one without",
        ours,
        {"without": plain},
        {"arch": "resnet50", "size": 224, "presize": 256, "count": 256, "steps_": 10, "precision": "bf16"},
        {
            "arch": "resnet18", "size": 32, "presize": 36, "count": 4, "steps_": 2, "precision": "fp32",
            "body": images.TINY,
        },
        unit="images",
        device="gpu",
        precision="bf16",
        tolerance=None,
        their_packages=(),
    ),
}  # fmt: skip
