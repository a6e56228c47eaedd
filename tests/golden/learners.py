"""Seventeen learners, one for each road through training, and how each is trained for 20 steps."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast import collab, losses, tabular, text, vision
from jaxfast.learner import Learner
from jaxfast.mix import compose, mixup
from jaxfast.models import efficientnet_lite, resnet
from jaxfast.models.layers import BatchNorm

from . import tasks

STEPS = 20
BODIES = {
    "resnet": vision.Architecture(
        partial(resnet.ResNet, (1,), resnet.BasicBlock, width=8), resnet.MEAN, resnet.STD
    ),
    "lite": vision.Architecture(
        partial(efficientnet_lite.EfficientNetLite, 0.25, 0.25), efficientnet_lite.MEAN, efficientnet_lite.STD
    ),
}  # fmt: skip
"""Bodies narrower and shallower than those of `vision.ARCHITECTURES`, which take tens of seconds to compile."""
TEXT = {"emb_size": 12, "hidden_size": 16, "n_layers": 1}


class Net(nn.Module):
    """A small network with everything that a step treats by itself: groups, batch norm, dropout and a penalty."""

    hidden: int = 16
    dtype: jnp.dtype = jnp.float32
    groups = (("conv",), ("dense", "head"))

    @nn.compact
    def __call__(self, image, train=False):
        x = (image.astype(self.dtype) - 127) / 64
        x = nn.Conv(8, (3, 3), (2, 2), dtype=self.dtype, name="conv")(x)
        x = nn.relu(BatchNorm(dtype=self.dtype, name="conv_norm")(x, train=train))
        x = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="dense")(x.reshape(len(x), -1)))
        if train:
            self.sow("penalties", "size", 1e-3 * jnp.square(x.astype(jnp.float32)).mean())
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3, dtype=self.dtype, name="head")(x).astype(jnp.float32)


# Builders: a front door each


def one():
    """The options of a learner on one device, where the tests have eight."""
    return {"devices": jax.devices()[:1], "quiet": True}


def eight():
    return {"devices": jax.devices(), "quiet": True}


def of_images(data, body, *, make=vision.learner, **options):
    """A learner over one of `BODIES` with random weights."""
    with patch.dict(vision.ARCHITECTURES, BODIES):
        return make(data, body, pretrained=False, **one(), **options)


def net(data=None, *, hidden=16, **options):
    """A bare learner of `Net`."""
    options = {"loss": losses.cross_entropy, "metrics": ["accuracy"], **one(), **options}
    return Learner(data or tasks.images(), Net(hidden), **options)


def classes():
    return of_images(tasks.images(), "resnet", hidden=(16,))


def augmented():
    return of_images(tasks.images(augment=True), "resnet", hidden=(), seed=1)


def lite():
    """The norm layers of the frozen body keep their statistics."""
    return of_images(tasks.images(size=32), "lite", hidden=(), train_norm=False)


def tags():
    return of_images(tasks.tags(), "resnet", hidden=(), optimizer="rmsprop")


def points():
    return of_images(tasks.points(), "resnet", hidden=())


def unet():
    return of_images(tasks.masks(), "resnet", make=vision.unet_learner)


def table_of_classes():
    return tabular.learner(tasks.table("rich"), layers=(16,), ps=0.1, embed_p=0.1, **one())


def table_of_numbers():
    data = tasks.table("price", log=True)
    return tabular.learner(data, layers=(16,), y_range=(0.01, 50.0), metrics=["rmspe", "mae"], **one())


def ratings_by_dot():
    return collab.learner(tasks.ratings(), n_factors=6, y_range=(0, 5.5), **one())


def ratings_by_network():
    return collab.learner(tasks.ratings(), use_nn=True, layers=(16,), dropout=0.1, y_range=(0, 5.5), **one())


def language_model():
    return text.language_learner(tasks.streams(), config=TEXT, drop_mult=0.5, **one())


def text_classifier():
    data = tasks.labelled_texts()
    return text.classifier_learner(data, config=TEXT, drop_mult=0.5, hidden=(8,), bptt=8, max_len=16, **one())


def by_sgd():
    """Two groups of batch statistics on one device."""
    return net(optimizer="sgd", norm_groups=2, weight_decay=0.05)


def in_fp16():
    return net(precision="fp16")


def streamed_in_parts():
    """Mixed and augmented images that do not lie on the device, two parts a step."""
    data = tasks.images(augment=True)
    data = dataclasses.replace(data, augment=compose(data.augment, mixup(len(data.classes))))
    return net(data, resident=False, accumulate=2)


def on_eight_devices():
    """Batch statistics of each device's rows."""
    return net(tasks.images(2 * tasks.ROWS, batch_size=16), **eight())


def sharded():
    """A dense kernel of 2**15 numbers, which is split over eight devices with its averages."""
    return net(tasks.images(2 * tasks.ROWS, batch_size=16), hidden=64, shard=True, **eight())


# Schedules: every rate is given, so that new defaults change nothing


def constant(learn):
    learn.fit(2, 3e-3)


def cycle(learn):
    learn.fit_one_cycle(2, slice(5e-4, 5e-3))


def flat(learn):
    learn.fit_flat_cos(2, slice(1e-3, 1e-2))


def restarts(learn):
    learn.fit_sgdr(2, 1, 5e-3, cycle_mult=1)


def frozen_then_whole(learn):
    learn.freeze()
    learn.fit_one_cycle(1, slice(5e-3))
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-4, 2e-3), div=5.0)


class Road(NamedTuple):
    """A learner, the first of its parameter groups that trains, and the function that trains it for `STEPS` steps.

    `slow`: its programs take long to compile, and what the training core does for it another learner shows too.
    """

    build: Callable[[], Learner]
    frozen_to: int
    fit: Callable[[Learner], None]
    slow: bool = False


LEARNERS = {
    "classes frozen": Road(classes, -1, cycle),
    "augmented": Road(augmented, 0, cycle, slow=True),
    "lite frozen with its norms": Road(lite, -1, cycle, slow=True),
    "tags by rmsprop": Road(tags, 0, constant),
    "points": Road(points, 0, flat, slow=True),
    "unet": Road(unet, 0, cycle, slow=True),
    "table of classes": Road(table_of_classes, 0, cycle),
    "table of numbers": Road(table_of_numbers, 0, flat),
    "ratings by dot": Road(ratings_by_dot, 0, cycle),
    "ratings by network": Road(ratings_by_network, 0, constant),
    "language model": Road(language_model, 0, cycle),
    "text classifier": Road(text_classifier, -2, cycle, slow=True),
    "net by sgd": Road(by_sgd, 0, restarts),
    "net in fp16": Road(in_fp16, 0, cycle),
    "net streamed in parts": Road(streamed_in_parts, 0, cycle),
    "net on eight devices": Road(on_eight_devices, -1, frozen_then_whole),
    "net sharded": Road(sharded, 0, cycle),
}
