"""Training steps of ResNets; `images` says what both sides do."""

from functools import partial

from experiments.benchmarks.images import theirs, workload

ON_GPU = {
    "torch channels_last, autocast": partial(theirs, channels_last=True),
    "torch.compile": partial(theirs, channels_last=True, compiled="default"),
    "torch.compile, CUDA graphs": partial(theirs, channels_last=True, compiled="reduce-overhead"),
}

WORKLOADS = {
    "resnet18": workload("ResNet-18, 64 px, batch 64: training step", "resnet18", 64, 64, 3),
    "resnet50": workload("ResNet-50, 128 px, batch 16: training step", "resnet50", 128, 16, 2),
    "resnet50_224": workload(
        "ResNet-50, 224 px, batch 256, bf16: training step", "resnet50", 224, 256, 10, ON_GPU,
        device="gpu", precision="bf16", tolerance=0.03,
    ),
}  # fmt: skip
