"""Whole fits on tables in torch: the loop that the rows of `tabular` and `collab` share.

Tensors lie on the device, an epoch's rows are drawn by index, AdamW is fused, the one cycle moves rate and momentum,
and every epoch ends with a pass over the validation rows. `graph`: a step is captured once as a CUDA graph, and
replayed (on CPU it just runs). The first epoch of each fit has the order of rows that our side's first epoch has.
"""

from collections.abc import Callable, Sequence

import numpy as np

from experiments.benchmarks import steps
from experiments.benchmarks.side import Side

VALID = 4096
"""Rows of a validation batch."""
GRAPHS = {
    "graph": (
        "its loop in a CUDA graph",
        {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"},
    ),
    "no_graph": (
        "its loop not in a CUDA graph",
        {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=-WHILE,-CONDITIONAL"},
    ),
}
"""Our side with XLA's while loops as commands of a CUDA graph and without, {name: (title, environment)}."""


def ours(folder: str, learn, epochs: int, lr: float, **weights: np.ndarray) -> Side:
    """A side of whole fits of a learner; leaves the `weights` that theirs begins with, and the order of the rows."""
    from jaxfast import training

    feed, state = learn.task.source, learn.state
    steps.leave(folder, {"order": training.epoch_order(state.key, 0, feed.examples), **weights})

    def run() -> list[float]:
        before = len(learn.history.losses)
        learn.fit_one_cycle(epochs, lr)
        return learn.history.losses[before : before + 2]

    count = epochs * (len(learn.data.train) // learn.data.batch_size)
    return Side(run, counted={"bytes": count * optimizer_bytes(learn)}, device_memory=steps.jax_memory())


def optimizer_bytes(learn) -> int:
    """What a step of AdamW reads and writes at least: every parameter and its two averages in fp32."""
    import jax

    return 2 * 3 * 4 * sum(x.size for x in jax.tree.leaves(learn.state.params))


def theirs(
    made: Callable,
    train: Sequence[np.ndarray],
    valid: Sequence[np.ndarray],
    loss: Callable,
    score: Callable,
    *,
    order: np.ndarray,
    size: int,
    epochs: int,
    lr: float,
    weight_decay: float = steps.WEIGHT_DECAY,
    graph: bool = False,
    compiled: str = "",
) -> Side:
    """A side of whole fits in torch.

    `made()` gives a model with the first weights; `train` and `valid` are the columns that it takes and, last, the
    target; `loss(outputs, target)` and `score(outputs, target)`, the sum of a metric. `order`: of the first epoch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = steps.torch_device()
    *train, target = (torch.tensor(x).to(device) for x in train)
    *valid, valid_target = (torch.tensor(x).to(device) for x in valid)
    order = torch.tensor(order).long().to(device)
    count, total = len(target) // size, epochs * (len(target) // size)
    rates, momenta = cycle(total, lr)
    with FlopCounterMode(display=False) as counter:
        loss(made().to(device)(*(x[:size] for x in train)), target[:size]).backward()
    model = made().to(device).train()
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    graph = graph and device.type == "cuda"
    rate = torch.tensor(lr, device=device) if graph else lr
    optimizer = steps.adamw(steps.decayed(model), rate, weight_decay=weight_decay, capturable=graph)
    forward = torch.compile(model, mode=compiled) if compiled else model

    def step(*batch):
        optimizer.zero_grad(set_to_none=True)
        *columns, wanted = batch
        value = loss(forward(*columns), wanted)
        value.backward()
        optimizer.step()
        return value.detach()

    def hyper(place: int) -> None:
        if graph:  # the momentum is part of the graph, and stays
            rate.fill_(rates[place])
            return
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rates[place], (momenta[place], steps.B2)

    do = captured(step, [x[:size].clone() for x in (*train, target)]) if graph else step

    def fit() -> list[float]:
        model.load_state_dict(weights)
        forget(optimizer)
        losses = []
        for epoch in range(epochs):
            model.train()
            rows = torch.randperm(len(target), device=device) if epoch else order
            for i in range(count):
                hyper(epoch * count + i)
                index = rows[i * size : (i + 1) * size]
                value = do(*(x[index] for x in (*train, target)))
                if len(losses) < 2:
                    losses.append(value.clone())
            model.eval()
            with torch.no_grad():
                parts = zip(*(x.split(VALID) for x in (*valid, valid_target)), strict=True)
                float(sum(score(model(*columns), wanted) for *columns, wanted in parts))
        return [float(value) for value in losses]

    return Side(fit, counted={"flops": total * counter.get_total_flops()}, device_memory=steps.torch_memory())


def cycle(total: int, lr: float) -> tuple[list[float], list[float]]:
    """The rates and momenta of one cycle, from torch's own schedule."""
    import torch

    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        lr,
        total_steps=total,
        pct_start=0.25,
        div_factor=25,
        final_div_factor=4e3,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    rates, momenta = [], []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    return rates, momenta


def forget(optimizer) -> None:
    """AdamW's averages and its count of steps, back to zero where they lie."""
    import torch

    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


def captured(step: Callable, batch: Sequence) -> Callable:
    """`step` on a fixed place for its batch, as a CUDA graph; whoever calls it puts the weights back first."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = step(*batch)

    def replay(*new):
        for place, x in zip(batch, new, strict=True):
            place.copy_(x)
        graph.replay()
        return value

    return replay
