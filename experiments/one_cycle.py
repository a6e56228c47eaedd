"""One cycle beside a constant rate and a step decay: the same small ResNet on CIFAR-10, as many epochs for each.

    python -m experiments.one_cycle              # three schedules, three seeds: a table, a picture, result.json
    python -m experiments.one_cycle --search     # choose the rates anew first
    python -m experiments.one_cycle --gpu        # all images, a ResNet of 8 layers, two rates, one seed; searches too
    python -m experiments.one_cycle --full       # ResNet-18 on all images, 30 epochs, all rates: searches too
    python -m experiments.one_cycle --small      # tiny sizes: shows in seconds that everything works

Data: `cifar10.npz` (Krizhevsky 2009; `--data DIR` or JAXFAST_DATA). Images are mirrored and shifted by up to 4 pixels.
Optimizer: SGD with momentum .9; one cycle takes its momentum from .95 down to .85 and back. The step decay divides the
rate by 10 after a half and after three quarters of the steps (He et al. 2015, section 4.2).
Rule for the rates: for each schedule the one of GRID with the best last accuracy on 5,000 training images held out,
with a seed that is not reported. The test images are looked at with the rates settled.

Accuracy on 5,000 test images after 8 epochs over 8,000 images, seeds 0, 1, 2 and mean (CPU, jax 0.10.2):
constant .394, .436, .461, mean .431; step decay .535, .535, .531, mean .534; one cycle .574, .567, .582, mean .574.
Rates .3, .1 and .3, with .465, .527 and .597 on the images held out (a constant .1: .465 too).
The nine runs took 13 minutes of CPU time, 15 minutes on two cores that were shared with other jobs.

`--gpu` is sized for two and a half minutes of one GPU: 9 trainings of 8 epochs, 6 of them to choose the rates. `--full`
trains 21 times for 30 epochs, 12 times to choose the rates. Neither has been measured: accuracy -, seconds -.
"""

import argparse
import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.data import data_file
from experiments.runtime import start

SCHEDULES = ("constant", "step decay", "one cycle")
GRID = (0.03, 0.1, 0.3, 1.0)
TWO_RATES = (0.1, 0.3)
SEARCH_SEED = 1000


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of: `images` to train on, `test_images` and `valid_images` to measure on (at most)."""

    stage_sizes: tuple[int, ...] = (1, 1, 1)
    width: int = 8
    images: int = 8_000
    test_images: int = 5_000
    valid_images: int = 5_000
    epochs: int = 8
    batch_size: int = 32


DEFAULT = Config()
FULL = Config((2, 2, 2, 2), 64, images=50_000, test_images=10_000, epochs=30, batch_size=128)
GPU = Config((1, 1, 1), 64, images=50_000, test_images=10_000, epochs=8, batch_size=256)
SMALL = Config((1,), 4, images=256, test_images=64, valid_images=64, epochs=2, batch_size=32)
DEFAULT_RATES = {"constant": 0.3, "step decay": 0.1, "one cycle": 0.3}


def read(path: Path, split: str, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of the `rows` of "train" or "test": uint8 (n, 40, 40, 3), 4 reflected pixels on every side."""
    from jaxfast.data.images import decode

    with np.load(path) as file:
        stream, offsets, labels = (file[f"{split}_{name}"] for name in ("jpeg", "offsets", "labels"))
    which = range(*rows.indices(len(labels)))
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda i: decode(stream[offsets[i] : offsets[i + 1]].tobytes()), which))
    return np.pad(np.stack(images), ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect"), labels[rows].astype(np.int64)


def cifar(config: Config, path: Path, *, search: bool):
    """The data of a run: validated on test images, or, with `search`, on training images that it does not train on."""
    from jaxfast import vision
    from jaxfast.augment import image_augment

    with np.load(path) as file:
        total, classes = len(file["train_labels"]), [str(name) for name in file["class_names"]]
    if search:
        train = read(path, "train", slice(min(config.images, total - config.valid_images)))
        held_out = read(path, "train", slice(total - config.valid_images, total))
    else:
        train = read(path, "train", slice(config.images))
        held_out = read(path, "test", slice(config.test_images))
    images, labels = (np.concatenate(parts) for parts in zip(train, held_out, strict=True))
    return vision.from_arrays(
        images,
        labels,
        classes=classes,
        valid=np.arange(len(train[0]), len(images)),
        presize=40,
        size=32,  # a random place in training, the image itself otherwise
        augment=image_augment(32, rotate=0, zoom=1, warp=0, lighting=0),
        batch_size=config.batch_size,
    )


def step_decay(steps: int, lr: float):
    """`lr`, a tenth of it from half of the steps on, a hundredth from three quarters on."""
    import optax

    return optax.piecewise_constant_schedule(lr, {steps // 2: 0.1, steps * 3 // 4: 0.1})


def train(config: Config, data, schedule: str, lr: float, seed: int):
    """A learner trained with one of SCHEDULES; its history has the accuracy of every epoch."""
    from jaxfast import losses
    from jaxfast.learner import Learner
    from jaxfast.models import ImageClassifier, LinearHead
    from jaxfast.models.resnet import MEAN, STD, BasicBlock, ResNet

    body = ResNet(config.stage_sizes, BasicBlock, config.width, small_stem=True)
    learn = Learner(
        data,
        ImageClassifier(body, LinearHead(len(data.classes)), MEAN, STD),
        loss=losses.cross_entropy,
        metrics=["accuracy"],
        optimizer="sgd",
        weight_decay=5e-3,
        moms=(0.9, 0.9, 0.9),
        seed=seed,
        quiet=True,
    )
    if schedule == "constant":
        learn.fit(config.epochs, lr)
    elif schedule == "step decay":
        learn.fit(config.epochs, step_decay(config.epochs * (len(data.train) // data.batch_size), lr))
    else:
        learn.fit_one_cycle(config.epochs, lr, moms=(0.95, 0.85, 0.95))
    return learn


def search(config: Config, path: Path, grid: tuple[float, ...] = GRID) -> dict[str, dict[float, float]]:
    """The last accuracy on held-out training images, for each schedule and rate; 0 where training fails."""
    data = cifar(config, path, search=True)
    found: dict[str, dict[float, float]] = {schedule: {} for schedule in SCHEDULES}
    for schedule in SCHEDULES:
        for lr in grid:
            try:
                found[schedule][lr] = train(config, data, schedule, lr, SEARCH_SEED).history.epochs[-1]["accuracy"]
            except FloatingPointError:
                found[schedule][lr] = 0.0
        print(f"{schedule}:", {lr: round(accuracy, 4) for lr, accuracy in found[schedule].items()}, flush=True)
    return found


def run(
    config: Config, path: Path, rates: dict[str, float], seeds: int, out: Path, searched: dict | None = None
) -> dict:
    """Train with every schedule and seed, draw, and give what is also written to `out`/result.json.

    `searched`: the accuracies that the rates were chosen by (`search`), which are written too.
    """
    import jax

    began = time.perf_counter()
    data = cifar(config, path, search=False)
    curves: dict[str, list] = {schedule: [] for schedule in SCHEDULES}
    lrs = {}
    for seed in range(seeds):
        for schedule in SCHEDULES:
            learn = train(config, data, schedule, rates[schedule], seed)
            lrs[schedule] = np.array(learn.history.lrs)[:, -1]
            curves[schedule].append(
                {name: [epoch[name] for epoch in learn.history.epochs] for name in ("valid_loss", "accuracy")}
            )
        print(f"seed {seed}:", {name: round(runs[-1]["accuracy"][-1], 4) for name, runs in curves.items()}, flush=True)
    last = {name: [run["accuracy"][-1] for run in runs] for name, runs in curves.items()}
    result = {
        "accuracy": {name: float(np.mean(values)) for name, values in last.items()},
        "accuracy_of_seeds": last,
        "rates": rates,
        "searched": searched,
        "curves": curves,
        "seconds": time.perf_counter() - began,
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
        **dataclasses.asdict(config),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    picture(curves, lrs, rates).savefig(out / "one_cycle.png", dpi=130)
    return result


def picture(curves: dict[str, list], lrs: dict[str, np.ndarray], rates: dict[str, float]):
    """A figure of the schedules, and of loss and accuracy per epoch: the mean of the seeds, and each of them thin."""
    from jaxfast.plot import BLUE, GREEN, RED, finish, new_figure

    figure = new_figure(13, 4.4)
    rate, *panels = figure.subplots(1, 3)
    for (name, runs), color in zip(curves.items(), (GREEN, BLUE, RED), strict=True):
        final = [run["accuracy"][-1] for run in runs]
        label = f"{name}, rate {rates[name]:g}: {np.mean(final):.1%}"
        rate.plot(lrs[name], color=color, linewidth=2, label=label)
        for panel, metric in zip(panels, ("valid_loss", "accuracy"), strict=True):
            values = np.array([run[metric] for run in runs])
            epochs = np.arange(1, values.shape[1] + 1)
            panel.plot(epochs, values.T, color=color, linewidth=0.8, alpha=0.35)
            panel.plot(epochs, values.mean(0), color=color, linewidth=2)
    rate.set(xlabel="step", ylabel="learning rate", yscale="log")
    panels[0].set(xlabel="epoch", ylabel="test loss")
    panels[1].set(xlabel="epoch", ylabel="test accuracy")
    return finish(figure, rate, *panels)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.one_cycle", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--gpu", action="store_true", help="all images and a small ResNet, for minutes of one GPU")
    size.add_argument("--full", action="store_true", help="ResNet-18 and all images, for an accelerator")
    size.add_argument("--small", action="store_true", help="tiny sizes that show in seconds that everything works")
    parser.add_argument("--search", action="store_true", help="choose the rates on held-out training images first")
    parser.add_argument("--seeds", type=int, help="runs to average over (3; with --gpu or --small 1)")
    parser.add_argument("--data", help="folder that holds cifar10.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/one_cycle"), help="folder for results (%(default)s)")
    options = parser.parse_args(arguments)
    path = data_file("cifar10.npz", options.data)
    start()
    config = FULL if options.full else GPU if options.gpu else SMALL if options.small else DEFAULT
    seeds = options.seeds or (1 if options.gpu or options.small else 3)
    rates, tried = DEFAULT_RATES, None
    if options.gpu or options.full or options.search:
        tried = search(config, path, TWO_RATES if options.gpu else GRID)
        rates = {name: max(accuracies, key=accuracies.get) for name, accuracies in tried.items()}
    result = run(config, path, rates, seeds, options.out, tried)
    print(json.dumps(result["accuracy"]))


if __name__ == "__main__":
    main()
