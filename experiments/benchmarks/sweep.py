"""Sixteen networks for Adult, of as many rates and decays, side by side in one program, beside one after the other."""

import numpy as np

from experiments.benchmarks import steps, tabular
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side


def settings(count: int) -> list[dict[str, float]]:
    rates, decays = np.geomspace(1e-3, 2e-2, count), np.geomspace(1e-1, 1e-3, count)
    return [{"lr": float(lr), "weight_decay": float(decay)} for lr, decay in zip(rates, decays, strict=True)]


def ours(folder: str, count: int, batch_size: int, epochs: int, rows: int | None = None) -> Side:
    from jaxfast.sweep import run_together

    learn = tabular.learner(tabular.table(batch_size, rows))

    def run() -> list[float]:
        return [row["valid_loss"] for row in run_together(learn, settings(count), epochs)]

    return Side(run, count, device_memory=steps.jax_memory())


def in_turn(folder: str, count: int, batch_size: int, epochs: int, rows: int | None = None) -> Side:
    import jax
    import jax.numpy as jnp

    learn = tabular.learner(tabular.table(batch_size, rows))
    first = jax.tree.map(jnp.copy, learn.state)

    def one(lr: float, weight_decay: float) -> float:
        learn.state = jax.tree.map(jnp.copy, first)
        learn.fit_one_cycle(epochs, lr, weight_decay=weight_decay)
        return learn.validate()["loss"]

    return Side(lambda: [one(**setting) for setting in settings(count)], count, device_memory=steps.jax_memory())


WORKLOADS = {
    "sweep": Workload(
        "16 networks for Adult, 1 epoch, batch 256: one program beside runs in turn",
        ours,
        {"in turn": in_turn},
        {"count": 16, "batch_size": 256, "epochs": 1},
        {"count": 2, "batch_size": 16, "epochs": 1, "rows": 500},
        unit="fits",
        device="gpu",
        tolerance=0.02,
        files=(tabular.FILE,),
        packages=("pandas",),
        their_packages=(),
    ),
}
