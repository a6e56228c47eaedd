"""A small task that the tests of training share: coloured squares in noise, and a small ResNet with three groups."""

import contextlib
import logging

import numpy as np

from jaxfast import losses, vision
from jaxfast.learner import Learner
from jaxfast.models import ClassifierHead, ImageClassifier
from jaxfast.models.resnet import BasicBlock, ResNet


def arrays(n=320, size=16, seed=0):
    """`n` noise images (n, size, size, 3) of three classes: the class's colour channel is darkened."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
    for i, label in enumerate(labels):
        images[i, ..., label] //= 3
    return images, labels


def data(batch_size=32, augment=True, n=320, **options):
    images, labels = arrays(n)
    return vision.from_arrays(
        images, labels, classes=["red", "green", "blue"], batch_size=batch_size, augment=augment, **options
    )


def module(n_out=3):
    body = ResNet((1, 1), BasicBlock, width=8)
    return ImageClassifier(body, ClassifierHead(n_out, hidden=(16,)), mean=(127.0,) * 3, std=(64.0,) * 3)


def learner(task=None, **options):
    options = {"loss": losses.cross_entropy, "metrics": ["accuracy"], "quiet": True} | options
    return Learner(data() if task is None else task, module(), **options)


class Torn:
    """A data set of which one batch cannot be read, once."""

    def __init__(self, dataset, bad):
        self.dataset, self.bad, self.reads = dataset, bad, 0

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def batch(self, index):
        self.reads += len(index) > 1
        if self.reads == self.bad:
            raise OSError("cannot read img_0042.jpg")
        return self.dataset.batch(index)


@contextlib.contextmanager
def compilations():
    """The names of the programs that XLA compiles in this block."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Finished XLA compilation of"):
                names.append(message.split()[4])

    handler, logger = Handler(), logging.getLogger("jax._src.dispatch")
    logger.addHandler(handler)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield names
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
