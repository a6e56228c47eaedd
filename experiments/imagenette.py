"""Imagenette by the recipe of fastai's leaderboard: an xResNet-50 from scratch, 5 epochs at 128 pixels.

    python -m jaxfast.data.tfds_prepare imagenette/320px-v2      # once (extra tfds-prepare)
    python -m experiments.imagenette --data-dir ~/tensorflow_datasets

Data: 9,469 training and 3,925 validation images of ten easy classes of ImageNet (Howard 2019), read by
`vision.from_tfds` from the 320-pixel version.

The recipe is fastai's `train_imagenette.py` (January 2020): xResNet-50 with Mish and self-attention, "Ranger" (RAdam,
Liu et al. 2020, inside Lookahead, Zhang et al. 2019) at 8e-3 with momentum .95, second moment .99 and eps 1e-6, flat
and then a cosine, weight decay .01, label smoothing .1, batches of 64. Their random resized crop (at least .35 of the
image) is a crop of 7/8 of the side that is magnified up to 1.48 times, without changes of aspect. Their leaderboard has
85.8 % for 5 epochs at 128 pixels (mean of 5, "mini net"); the accuracy of this script has not been measured yet.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runtime import start


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of."""

    size: int = 128
    epochs: int = 5
    batch_size: int = 64
    lr: float = 8e-3
    momentum: float = 0.95
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64


class LookaheadState(NamedTuple):
    """`slow`: a tree like the parameters; `count`: steps so far, shape ()."""

    slow: Any
    count: Any
    inner: Any


def ranger(hypers, *, labels=None):
    """RAdam inside Lookahead: every sixth step the parameters go back half of the way to where they were then.

    An optimizer for a `Learner`; decay is decoupled and leaves norms and biases out, as fastai does.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from jaxfast.optim import per_group

    fast = per_group(lambda momentum: optax.scale_by_radam(momentum, 0.99, 1e-6))(hypers, labels=labels)

    def init(params):
        return LookaheadState(jax.tree.map(jnp.copy, params), jnp.zeros([], jnp.int32), fast.init(params))

    def update(updates, state, params):
        updates, inner = fast.update(updates, state.inner, params)
        count = state.count + 1
        now = count % 6 == 0
        slow = jax.tree.map(lambda s, p, u: jnp.where(now, s + (p + u - s) / 2, s), state.slow, params, updates)
        updates = jax.tree.map(lambda s, p, u: jnp.where(now, s - p, u), slow, params, updates)
        return updates, LookaheadState(slow, count, inner)

    return optax.GradientTransformation(init, update)


def load(config: Config, name: str, data_dir: str | None, seed: int):
    """The images of a prepared data set: training and validation."""
    from jaxfast import vision
    from jaxfast.augment import image_augment

    size = config.size
    return vision.from_tfds(
        name,
        data_dir=data_dir,
        valid="validation",
        seed=seed,
        size=size,
        presize=size * 8 // 7,
        batch_size=config.batch_size,
        augment=image_augment(size, rotate=0, zoom=1.48, warp=0, lighting=0, p_affine=1),
    )


def learner(config: Config, data, seed: int):
    """An untrained xResNet with Mish and self-attention."""
    import jax

    from jaxfast import losses
    from jaxfast.learner import Learner
    from jaxfast.models import ImageClassifier, LinearHead
    from jaxfast.models.resnet import MEAN, STD
    from jaxfast.models.xresnet import XResNet

    body = XResNet(config.stage_sizes, 4, config.width, activation=jax.nn.mish, attention=True)
    return Learner(
        data,
        ImageClassifier(body, LinearHead(len(data.classes)), MEAN, STD),
        loss=functools.partial(losses.cross_entropy, label_smoothing=config.label_smoothing),
        metrics=["accuracy"],
        optimizer=ranger,
        weight_decay=config.weight_decay,
        moms=(config.momentum,) * 3,
        seed=seed,
        quiet=True,
    )


def run(config: Config, name: str, data_dir: str | None, seeds: int, out: Path) -> dict:
    """Train with every seed; gives what is also written to `out`/result.json."""
    import jax
    import numpy as np

    began = time.perf_counter()
    accuracies = []
    for seed in range(seeds):
        learn = learner(config, load(config, name, data_dir, seed), seed)
        learn.fit_flat_cos(config.epochs, config.lr)
        accuracies.append(learn.history.epochs[-1]["accuracy"])
        print(f"seed {seed}:\n{learn.history}", flush=True)
    most = max(np.bincount(learn.data.valid.targets)) / len(learn.data.valid)
    result = {
        "accuracy": float(np.mean(accuracies)),
        "accuracy_of_seeds": accuracies,
        "most_frequent_class": float(most),
        "seconds": time.perf_counter() - began,
        "train_seconds": sum(epoch["train_seconds"] for epoch in learn.history.epochs),
        "device": str(jax.devices()[0].device_kind),
        "versions": {"jax": jax.__version__},
        **dataclasses.asdict(config),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    scores = learn.interpret()
    figures = {
        "batch": learn.show_batch(9),
        "losses": learn.history.plot(),
        "confusion": scores.plot_confusion_matrix(),
        "top_losses": scores.plot_top_losses(9),
    }
    for title, figure in figures.items():
        figure.savefig(out / f"{title}.png", dpi=130)
    return result


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.imagenette", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", default="imagenette/320px-v2", help="name of TFDS, or a folder (%(default)s)")
    parser.add_argument("--data-dir", help="where TFDS keeps its data sets (TFDS_DATA_DIR)")
    parser.add_argument("--size", type=int, default=Config.size, help="side in pixels: 128, 192, 256 (%(default)s)")
    parser.add_argument("--epochs", type=int, default=Config.epochs, help="5, 20, 80, 200 (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs to average over (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/imagenette"), help="folder for results (%(default)s)")
    options = parser.parse_args(arguments)
    start()
    config = Config(size=options.size, epochs=options.epochs)
    result = run(config, options.data, options.data_dir, options.seeds, options.out)
    print(json.dumps({name: result[name] for name in ("accuracy", "accuracy_of_seeds", "seconds", "device")}))


if __name__ == "__main__":
    main()
