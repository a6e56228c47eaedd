"""CIFAR-10 to about 94 % (`experiments.cifar10`, which says more): seconds of a whole fit, compiled before."""

from experiments.benchmarks import steps
from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side
from experiments.data import data_file

FILE = "cifar10.npz"


def ours(folder: str, **config) -> Side:
    from experiments.cifar10 import Config, cifar, learner, rates

    chosen = Config(**{name: tuple(value) if name == "widths" else value for name, value in config.items()})
    learn = learner(chosen, cifar(chosen, data_file(FILE)), 0)

    def run() -> list[float]:
        learn.fit_one_cycle(chosen.epochs, rates(chosen), pct_start=0.23, div=5.0)
        return [learn.history.epochs[-1]["accuracy"]]

    return Side(run, device_memory=steps.jax_memory())


WORKLOADS = {
    "cifar10": Workload(
        "CIFAR-10, 10 epochs from scratch",
        ours,
        small={"widths": [4, 8, 8], "images": 256, "test_images": 64, "epochs": 1, "batch_size": 64},
        device="gpu",
        files=(FILE,),
        packages=(),
    ),
}
