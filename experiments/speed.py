"""How fast a run is beside what its devices can do: images per second and MFU."""

import jax
import numpy as np

# bf16 (fp16 where there is no bf16) operations per second of one device, without sparsity, as the makers publish them.
PEAKS = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
}


def peak(device: jax.Device) -> float | None:
    """The published peak of a device, None for one that is not in the table (a CPU).

    >>> peak(jax.devices("cpu")[0])
    """
    return next((flops for kind, flops in PEAKS.items() if device.device_kind.startswith(kind)), None)


def step_flops(learn) -> float:
    """Operations of one training step of a learner on all devices together, counted in the program before the compiler
    changes it: multiplications and additions of forward, backward, update and augmentation."""
    state = jax.eval_shape(lambda: learn.state)
    example = learn.task.example
    rows = lambda x: jax.ShapeDtypeStruct((learn.data.batch_size, *x.shape[1:]), x.dtype)
    part = learn.trainable
    hypers = {"lr": np.zeros(part.n_groups, np.float32), "momentum": np.float32(0), "weight_decay": np.float32(0)}
    lowered = jax.jit(learn.task.step(part)).lower(state, jax.tree.map(rows, example), hypers)
    return float(lowered.cost_analysis()["flops"])


def speed(learn, flops: float) -> dict[str, float]:
    """ "images/s" of the newest epoch (compilation counts in the first), and its "mfu" where the peak is known."""
    epoch = learn.history.epochs[-1]
    steps = len(learn.data.train) // learn.data.batch_size
    rate = steps / epoch["train_seconds"]
    result = {"images/s": rate * learn.data.batch_size}
    best = peak(learn.mesh.devices.flat[0])
    return result | ({"mfu": rate * flops / (best * learn.mesh.size)} if best else {})
