"""Training steps on one batch, here and in torch: what the workloads of images and texts have in common.

Ours runs the program that a learner runs, several steps in one dispatch. torch's loop is that of a careful user: fused
AdamW, gradients set to None, losses fetched at the end; in the variants, the memory format that its convolutions want,
bf16 by autocast, torch.compile. Both sides' first run gives the losses of its first two steps, so that the gradients
and the optimizer's update are compared, too.
"""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.side import Side

# AdamW's first step is as long for the smallest gradient: at a larger rate it turns rounding into other losses.
LR, MOMENTUM, B2, EPS, WEIGHT_DECAY = 1e-5, 0.9, 0.99, 1e-5, 0.01


def ours(
    module,
    batch: Mapping[str, np.ndarray],
    loss: Callable,
    *,
    inputs: Sequence[str],
    steps: int,
    work: float,
    precision: str = "fp32",
    augment: Callable | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Side, dict]:
    """(a side of `steps` steps of `module` on `batch`, which are `work` units each; the first variables).

    `options`: of XLA's compiler, by name.
    """
    import jax

    from jaxfast import optim, training
    from jaxfast.mesh import data_mesh
    from jaxfast.precision import cast_module, resolve

    mesh = data_mesh(jax.devices()[:1])
    size = len(batch["target"])
    module = cast_module(module, resolve(precision).dtype)
    state = training.create_state(module, [batch[name][:1] for name in inputs], optim.hyper_adamw, mesh=mesh)
    variables = jax.device_get(state.variables)
    step = training.make_step(
        module, loss, optim.hyper_adamw, training.trainable(state.params), inputs=inputs, augment=augment
    )
    chunk = training.make_chunk(step, size, mesh, resident=False, capacity=steps)
    rows = training.hyper_rows(steps, [LR], MOMENTUM, WEIGHT_DECAY)
    rest = jax.device_put(dict(batch)), np.empty(0, np.int32), np.int32(0), np.int32(steps), rows, np.bool_(False)
    held = [state]

    def run() -> list[float]:
        if len(held) == 1:
            held.append(chunk.lower(held[0], *rest).compile(dict(options or {}) or None))
        held[0], scalars, *_ = held[1](held[0], *rest)
        return np.asarray(scalars["loss"])[:2].tolist()

    return Side(run, steps * work, device_memory=jax_memory()), variables


def jax_memory() -> Callable[[], int] | None:
    """What asks the accelerator for its peak; None on CPU."""
    import jax

    device = jax.devices()[0]
    return None if device.platform == "cpu" else lambda: device.memory_stats()["peak_bytes_in_use"]


def torch_device():
    """The GPU, where torch may use TF32 and as much memory as ours (`process.FRACTION`), or one thread of the CPU."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.cuda.set_per_process_memory_fraction(float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 1)))
    return torch.device("cuda")


def torch_memory() -> Callable[[], int] | None:
    import torch

    return torch.cuda.max_memory_allocated if torch.cuda.is_available() else None


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def adamw(parameters, lr: float = LR, **options: Any):
    """torch's AdamW as the library's, in one kernel."""
    import torch

    settings = {"betas": (MOMENTUM, B2), "eps": EPS, "weight_decay": WEIGHT_DECAY, "fused": True}
    return torch.optim.AdamW(parameters, lr, **settings | options)


def decayed(model) -> list[dict]:
    """Parameter groups in which norms and biases are not decayed, as is the practice here and elsewhere."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    return [{"params": weights}, {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]


def theirs(
    model,
    inputs: Sequence,
    target,
    loss: Callable,
    *,
    steps: int,
    work: float,
    precision: str = "fp32",
    channels_last: bool = False,
    compiled: str = "",
    flops: float | None = None,
) -> Side:
    """A side of `steps` steps of a torch `model`.

    `inputs`, `target`: NumPy arrays; `loss(outputs, target)`. `compiled`: a mode of torch.compile, "" for none.
    `flops`: of one step, where torch's own counter does not know an operation.
    """
    import torch

    device = torch_device()
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    move = lambda x: torch.tensor(x).to(device, **(layout if x.ndim == 4 else {}))
    inputs, target = [move(x) for x in inputs], move(target)
    if flops is None:
        flops = counted_flops(model, inputs, target, loss)
    model = model.to(device, **layout).train()
    optimizer = adamw(decayed(model))
    forward = torch.compile(model, mode=compiled) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = forward(*inputs)
        value = loss(outputs.float(), target)
        value.backward()
        optimizer.step()
        return value.detach().clone()

    def run() -> list[float]:
        losses = [step() for _ in range(steps)]
        synchronize()
        return [value.item() for value in losses[:2]]

    return Side(run, steps * work, {"flops": steps * flops}, device_memory=torch_memory())


def counted_flops(model, inputs: Sequence, target, loss: Callable) -> int:
    """Operations of forward and backward of a torch model, counted without computing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    def convolution_backward(
        g, x, w, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted, out_shape
    ):
        # torch's own formula for the weights' gradient takes a grouped convolution for a dense one: Lite0 at 96 px
        # has 14 times fewer operations than it counts. Each gradient takes as many as the forward pass.
        return conv_flop_count(x, w, g, transposed) * sum(wanted[:2])

    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward}
    )
    nowhere = copy.deepcopy(model).to("meta")
    with counter:
        loss(nowhere(*(x.to("meta") for x in inputs)), target.to("meta")).backward()
    return counter.get_total_flops()


def leave(folder: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Where `found` on the other side looks for them."""
    np.savez(Path(folder, "shared.npz"), **arrays)


def found(folder: str) -> dict[str, np.ndarray]:
    """What our side has left: weights, the order of the rows."""
    with np.load(Path(folder, "shared.npz")) as file:
        return dict(file)
