"""Flowers: progressive resizing, small images first and the full size last, beside the full size all the way.

    python -m experiments.flowers            # 64, then 96 pixels: for a CPU
    python -m experiments.flowers --full     # 128, then 192 pixels: for a GPU (the photographs have 128: 192 enlarges)

Data: `flowers.zip`, 4,317 photographs of 128x128 pixels in five classes, heavily compressed, some labels wrong
(`--data DIR` or JAXFAST_DATA). A fifth of every class validates, another one for each seed, the same for both ways.
An EfficientNet-Lite0 with ImageNet weights is fine-tuned: one epoch of the head, then one cycle of all layers. "full
size" does so at the full size, a cycle of 8 epochs; "progressive" has a cycle of 9, of which it trains 5 at the small
size, then calls `learn.resize(full)` and trains the other 4. Both are validated at the full size in the end. Compute
is counted: operations of a training step (forward, backward, update, augmentation) times steps. CPU seconds are of
training with its validations, compilation left out.

Result of the first command with `--seeds 3`, jax 0.10.2, 2 CPU cores: full size .7740 .7961 .7903, mean .787, in 13.3
TFLOP and 546 CPU seconds a run; progressive .7775 .7787 .7984, mean .785, in 10.1 TFLOP (76 %) and 408 seconds. The
differences of a seed have a standard deviation of .014. The 5 and 4 epochs were settled on seeds 100 and 101 (.8169 and
.7995, progressive .8158 and .8053), after cycles of their own for each size had fallen short by .3 to 2.7 points. The
second command has not been run.
"""

import argparse
import dataclasses
import json
import time
import zipfile
from pathlib import Path

import numpy as np

from experiments.data import data_file
from experiments.runtime import start
from experiments.tiny import HELP, NET

WAYS = ("full size", "progressive")


@dataclasses.dataclass(frozen=True)
class Config:
    """After the frozen epoch: a cycle of `epochs` at the full size, or one of `small_epochs` and then `last` ones."""

    small: int = 64
    full: int = 96
    epochs: int = 8
    small_epochs: int = 5
    last: int = 4
    batch_size: int = 64
    lr: float = 1e-2
    lr_mult: float = 4.0
    augment: bool = True


DEFAULT = Config()
FULL = Config(128, 192)
SMALL = Config(32, 48, epochs=1, small_epochs=1, last=1, batch_size=16, augment=False)


def photographs(path: Path) -> tuple[list[tuple[bytes, str]], list[str]]:
    """((file, class name) of every photograph, in the order of their paths, and the class names)."""
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
        items = [(file.read(name), name.split("/")[-2]) for name in names]
    return items, sorted({label for _, label in items})


def learner(config: Config, items, size: int, seed: int, arch: str = "efficientnet_lite0", **net):
    """A learner for the photographs at one size; `net` are options of `vision.learner`."""
    from jaxfast import vision

    options = {"batch_size": config.batch_size, "augment": config.augment}
    data = vision.from_source(items, valid=0.2, seed=seed, size=size, **options)
    return vision.learner(data, arch, seed=seed, quiet=True, **net)


def train(config: Config, way: str, learn) -> dict:
    """Train in one of WAYS; gives the accuracy in the end, what it took, and the course of it."""
    from experiments.speed import step_flops

    curve, flops, cpu, wall = [], 0.0, 0.0, 0.0

    def fit(epochs: int, lr: slice, start: int = 0, end: int | None = None, **cycle) -> None:
        nonlocal flops, cpu, wall
        end = end or epochs
        each = step_flops(learn) * (len(learn.data.train) // learn.data.batch_size)
        learn.lr_find(steps=2)  # reads the photographs and compiles, which the clocks below leave out
        learn.validate()
        began = time.process_time(), time.perf_counter()
        learn.fit_one_cycle(epochs, lr, part=(start, end), **cycle)
        cpu, wall = cpu + time.process_time() - began[0], wall + time.perf_counter() - began[1]
        for epoch in learn.history.epochs[start - end :]:
            flops += each
            curve.append({"flops": flops, "accuracy": epoch["accuracy"], "size": learn.data.size[0]})

    # As fine_tune does: the head, then everything at half the rate and discriminative ones.
    learn.freeze()
    fit(1, slice(config.lr), pct_start=0.99)
    learn.unfreeze()
    rates, cycle = slice(config.lr / 2 / config.lr_mult, config.lr / 2), {"pct_start": 0.3, "div": 5.0}
    if way == "full size":
        fit(config.epochs, rates, **cycle)
    else:
        epochs = config.small_epochs + config.last
        fit(epochs, rates, end=config.small_epochs, **cycle)
        learn.resize(config.full)
        fit(epochs, rates, start=config.small_epochs, **cycle)
    return {
        "accuracy": learn.validate()["accuracy"],
        "flops": flops,
        "cpu_seconds": cpu,
        "seconds": wall,
        "curve": curve,
    }


def run(config: Config, path: Path, seeds: int, out: Path, every: int = 1, **options) -> dict:
    """Train both ways with every seed, draw, and give what is also written to `out`/result.json.

    `every`: take one of this many photographs.
    """
    import jax

    items, classes = photographs(path)
    items = items[::every]
    runs: dict[str, list] = {way: [] for way in WAYS}
    for seed in range(seeds):
        for way in WAYS:
            learn = learner(config, items, config.full if way == "full size" else config.small, seed, **options)
            runs[way].append(train(config, way, learn))
            shown = {name: value for name, value in runs[way][-1].items() if name != "curve"}
            print(f"seed {seed}, {way}:", shown, flush=True)
    mean = lambda name: {way: float(np.mean([run[name] for run in runs[way]])) for way in WAYS}
    result = {
        **{name: mean(name) for name in ("accuracy", "flops", "cpu_seconds", "seconds")},
        "share_of_compute": mean("flops")["progressive"] / mean("flops")["full size"],
        "runs": runs,
        "classes": classes,
        "seeds": seeds,
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
        **dataclasses.asdict(config),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    pictures = {
        "resizing": picture(runs),
        "confusion": learn.interpret().plot_confusion_matrix(),
        "top_losses": learn.interpret().plot_top_losses(9),
    }
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=130)
    return result


def picture(runs: dict[str, list]):
    """A figure of accuracy by compute after every epoch: the mean of the seeds, and each of them thin."""
    from jaxfast.plot import BLUE, RED, finish, new_figure

    figure = new_figure(7.5, 4.4)
    ax = figure.subplots()
    for (way, courses), color in zip(runs.items(), (BLUE, RED), strict=True):
        flops = np.array([epoch["flops"] for epoch in courses[0]["curve"]]) / 1e12
        accuracy = np.array([[epoch["accuracy"] for epoch in run["curve"]] for run in courses])
        sizes = [epoch["size"] for epoch in courses[0]["curve"]]
        mean = accuracy.mean(0)
        ax.plot(flops, accuracy.T, color=color, linewidth=0.8, alpha=0.35)
        ax.plot(flops, mean, "o-", color=color, linewidth=2, label=f"{way}: {mean[-1]:.1%}, {flops[-1]:.1f} TFLOP")
        for i, size in enumerate(sizes):
            if i == 0 or size != sizes[i - 1]:
                ax.annotate(f"{size} px", (flops[i], mean[i]), (6, -14), textcoords="offset points", color=color)
    ax.set(xlabel="compute of training so far (TFLOP)", ylabel="accuracy, at the size of the epoch")
    return finish(figure, ax)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.flowers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help=f"the long run for a GPU: {FULL}")
    parser.add_argument("--small", action="store_true", help=HELP)
    parser.add_argument("--seeds", type=int, default=2, help="runs of each way to average over (%(default)s)")
    parser.add_argument("--data", help="folder that holds flowers.zip")
    parser.add_argument("--out", type=Path, default=Path("runs/flowers"), help="folder for results (%(default)s)")
    options = parser.parse_args(arguments)
    path = data_file("flowers.zip", options.data)
    start()
    config = SMALL if options.small else FULL if options.full else DEFAULT
    result = run(config, path, options.seeds, options.out, **({"every": 60} | NET if options.small else {}))
    shown = ("accuracy", "flops", "share_of_compute", "cpu_seconds", "seconds")
    print(json.dumps({name: result[name] for name in shown}))


if __name__ == "__main__":
    main()
