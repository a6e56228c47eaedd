"""Training steps of EfficientNet-Lite0; `images` says what both sides do."""

from experiments.benchmarks.images import workload

WORKLOADS = {"lite0": workload("EfficientNet-Lite0, 96 px, batch 32: training step", "efficientnet_lite0", 96, 32, 3)}
