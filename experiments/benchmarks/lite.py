"""Training steps of EfficientNet-Lite0; `images` says what both sides do."""

from experiments.benchmarks.images import ON_GPU, workload

WORKLOADS = {
    "lite0": workload("EfficientNet-Lite0, 96 px, batch 32: training step", "efficientnet_lite0", 96, 32, 3),
    "lite0_224": workload(
        "EfficientNet-Lite0, 224 px, batch 256, bf16: training step", "efficientnet_lite0", 224, 256, 10, ON_GPU,
        device="gpu", precision="bf16", tolerance=0.03,
    ),
}  # fmt: skip
