"""Training steps of ResNets; `images` says what both sides do.

What a step of ResNet-50 at 224 px takes at least, an image: 24.5 GFLOP, three times the forward pass's 8.2 less the
stem's gradient of the pixels; and 222 MB, ten passes over the 11.1 million outputs of its convolutions in bf16. Four
are forwards: written, read and written by the norm, read by the next convolution. Six are backwards: the gradient
written, read by the norm beside the convolution's output, the gradient of that output written, read by the gradients of
the convolution beside its input. The larger of both times, at the rates that the machine was measured to have, is the
limit of the row.
"""

from experiments.benchmarks.images import ON_GPU, workload

NEEDS = 24.5e9, 222e6


def on_gpu(title: str, images: int = 256, variants=None, **options):
    return workload(
        f"ResNet-50, 224 px, batch {images}, bf16: {title}", "resnet50", 224, images, 10, variants or {},
        device="gpu", precision="bf16", tolerance=0.03, needs=NEEDS, **options,
    )  # fmt: skip


WORKLOADS = {
    "resnet18": workload("ResNet-18, 64 px, batch 64: training step", "resnet18", 64, 64, 3),
    "resnet50": workload("ResNet-50, 128 px, batch 16: training step", "resnet50", 128, 16, 2),
    "resnet50_224": on_gpu("training step", variants=ON_GPU),
    # one lever a row, each beside resnet50_224
    "resnet50_b128": on_gpu("training step", 128),
    "resnet50_b512": on_gpu("training step", 512),
    "resnet50_nhwc": on_gpu("convolutions in NHWC", options={"xla_gpu_force_conv_nhwc": True}),
    "resnet50_nchw": on_gpu("convolutions in NCHW", options={"xla_gpu_force_conv_nchw": True}),
    "resnet50_no_triton": on_gpu("products by cuBLAS", options={"xla_gpu_enable_triton_gemm": False}),
    "resnet50_cudnn_fusion": on_gpu("products fused by cuDNN", options={"xla_gpu_cudnn_gemm_fusion_level": 2}),
    "resnet50_graph": on_gpu(
        "the loop in a CUDA graph", variables={"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"}
    ),
}
