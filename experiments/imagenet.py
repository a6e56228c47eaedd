"""ImageNet from scratch, on one device, under SLURM, or on every worker of a TPU pod: the same command.

    python -m experiments.imagenet --data imagenet2012 --data-dir /mnt/tfds --workdir gs://BUCKET/run
    python -m experiments.imagenet --data /data/imagenet --workdir runs/imagenet        # train/<class>/, val/<class>/
    python -m experiments.imagenet --data /data/packed --workdir runs/imagenet          # of python -m jaxfast.data.pack
    python -m experiments.imagenet --fake-data --epochs 3 --sizes 224 --workdir /tmp/x  # how fast is it?

Data lie on a disk that every worker sees: one that is attached, or a bucket that gcsfuse mounts at /mnt/tfds.
Checkpoints go to a folder that all see, or to gs:// directly (through gcsfs, which the extra `pod` brings).

Killed, told to go (SIGTERM, a preemption notice) or crashed, and started again, it goes on at the same step to the same
numbers. The launchers of `experiments/launch` start it again by themselves.

ResNet-50 by one cycle over growing images (128, 192, 224 px): SGD, label smoothing .1, no decay on norms and biases,
last norms of blocks start at zero, all 50,000 validation images count once. Accuracy on ImageNet has not been measured
yet: no row of the README's table claims one.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runtime import start


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of; the numbers of a run depend on this and on the number of devices of its start alone."""

    workdir: str
    """Checkpoints and logs: a folder, or a URL such as gs://bucket/run."""
    data: str = ""
    """A folder of class folders (train/, val/), of packed shards, or the name of a data set of TFDS."""
    data_dir: str | None = None
    """Where TFDS keeps its data sets."""
    valid: str = ""
    """Name of the validation part (default: val; validation of TFDS; a pack of TFDS calls it valid)."""
    fake_data: bool = False
    """Random images instead, kept on the device: for measuring speed."""
    fake_images: int = 0
    """How many of them (default: four batches)."""
    model: str = "resnet50"
    epochs: int = 18
    batch_size: int = 1024
    """Of all devices together."""
    sizes: tuple[int, ...] = (128, 192, 224)
    """Sides of the images in pixels; the epochs are shared out among them in order."""
    lr: float = 2.0
    """The peak of the cycle."""
    weight_decay: float = 5e-4
    """Decoupled: weights shrink by lr * weight_decay a step."""
    momentum: float = 0.9
    label_smoothing: float = 0.1
    ema: float = 0.0
    """Decay of averaged weights, such as .999; they are evaluated at the end beside the last ones."""
    precision: str = "auto"
    accumulate: int = 1
    shard: bool = False
    """Split parameters and optimizer state over the devices."""
    workers: int = 0
    """Processes that decode; 0 for threads."""
    every: int = 500
    """Steps between checkpoints; each epoch writes one too."""
    seed: int = 0
    logs: str = ""
    """Folder of log.csv and TensorBoard's files (default: workdir, where that is a folder)."""
    coordinator: str | None = None
    """host:port of process 0, where jax does not detect the cluster (with num_processes and process_id)."""
    num_processes: int | None = None
    process_id: int | None = None


def data(config: Config, size: int):
    """The training and validation images at one size."""
    from jaxfast import vision

    common = {"size": size, "batch_size": config.batch_size, "seed": config.seed}
    if config.fake_data:
        rng = np.random.default_rng(config.seed)
        images = rng.integers(0, 256, (config.fake_images or 4 * config.batch_size, size, size, 3), np.uint8)
        labels = np.arange(len(images)) % 1000
        return vision.from_arrays(
            images, labels, classes=[str(i) for i in range(1000)], valid=np.arange(len(images) // 4), **common
        )
    common["presize"] = size * 8 // 7  # a random crop of 7/8 of each side
    if Path(config.data, "train").is_dir():
        return vision.from_folder(config.data, valid=config.valid or "val", **common)
    if Path(config.data).is_dir():
        return vision.from_packed(config.data, valid=config.valid or "val", **common)
    return vision.from_tfds(config.data, data_dir=config.data_dir, valid=config.valid or "validation", **common)


def module(config: Config, classes: int):
    from jaxfast import vision
    from jaxfast.models import ImageClassifier, LinearHead

    made = vision.ARCHITECTURES[config.model]
    return ImageClassifier(made.body(), LinearHead(classes), mean=made.mean, std=made.std)


def train(config: Config, quiet: bool = False):
    """Train as `config` says; gives the learner of the last size."""
    import functools

    import jax

    from experiments.speed import speed, step_flops
    from jaxfast import losses, optim, training
    from jaxfast.learner import Learner

    optimizer = optim.averaged(optim.hyper_sgd, config.ema) if config.ema else optim.hyper_sgd
    checkpoints = training.Checkpoints(config.workdir, every=config.every, keep_best="accuracy")
    recipes = logs(config) if jax.process_index() == 0 else []
    learn, done = None, 0
    shares = [len(share) for share in np.array_split(np.arange(config.epochs), len(config.sizes))]
    for size, epochs in zip(config.sizes, shares, strict=True):
        if not epochs:
            continue
        images = data(config, size)
        next_learn = Learner(
            images,
            module(config, len(images.classes)),
            loss=functools.partial(losses.cross_entropy, label_smoothing=config.label_smoothing),
            metrics=["accuracy", "top_5_accuracy"],
            optimizer=optimizer,
            weight_decay=config.weight_decay,
            moms=(config.momentum,) * 3,
            precision=config.precision,
            seed=config.seed,
            accumulate=config.accumulate,
            shard=config.shard,
            workers=config.workers,
            checkpoints=checkpoints,
            quiet=quiet,
        )
        if learn is not None:
            next_learn.state, next_learn.history = learn.state, learn.history
        learn, flops = next_learn, step_flops(next_learn)

        def log(epoch, metrics, state, learn=learn, flops=flops):
            row = {**metrics, **speed(learn, flops)}
            if not learn.quiet:
                print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            for recipe in recipes:
                recipe(epoch, row, state)

        learn.fit_one_cycle(config.epochs, config.lr, part=(done, done + epochs), after_epoch=[log])
        done += epochs
    return learn


def logs(config: Config) -> list:
    """Recipes that write CSV and TensorBoard's files, where there is a folder for them."""
    from jaxfast.training.recipes import csv_log, tensorboard_log

    folder = config.logs or ("" if "://" in config.workdir else config.workdir)
    if not folder:
        return []
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [csv_log(Path(folder, "log.csv")), tensorboard_log(Path(folder, "tensorboard"))]


def averaged(learn) -> dict[str, float]:
    """Validation with the averaged weights."""
    from jaxfast import optim

    last = learn.state
    learn.state = last.replace(params=learn.trainable.merge(optim.averages(last.opt_state), last.params))
    try:
        return learn.validate()
    finally:
        learn.state = last


def main(arguments: list[str] | None = None) -> Any:
    from jaxfast._extras import need

    tyro = need("tyro", extra="pod", purpose="the command line of this experiment")
    config = tyro.cli(Config, args=arguments, description=__doc__)
    if not config.fake_data and not config.data:
        raise SystemExit("experiments.imagenet: give --data (a folder or the name of a TFDS data set) or --fake-data")

    from jaxfast.mesh import init_distributed

    init_distributed(config.coordinator, config.num_processes, config.process_id)
    learn = train(config)
    results = {"last": learn.validate()} | ({"averaged": averaged(learn)} if config.ema else {})
    if not learn.quiet:
        for name, result in results.items():
            print(name, "  ".join(f"{metric} {value:.4f}" for metric, value in result.items()))
    return results


if __name__ == "__main__":
    start()
    main()
