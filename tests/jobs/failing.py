"""A fit that fails in the last process of a job: its data cannot be read, or a recipe raises. Then it trains on."""

import dataclasses

import jax
import small

from jaxfast import training
from jobs import join


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


def main(what, epochs=300):
    last, task = jax.process_index() == jax.process_count() - 1, small.data()
    if what == "data" and last:
        task = dataclasses.replace(task, train=Torn(task.train, 13))
    learn = small.learner(task, resident=False)

    def recipe(epoch, metrics, state):
        if what == "recipe" and last and epoch == 1:
            raise ValueError("the log cannot be written")

    try:
        learn.fit(epochs, 1e-3, after_epoch=[recipe])
        print("no error")
    except (OSError, ValueError, RuntimeError) as error:
        print("error", type(error).__name__, error)
    print("state", int(learn.state.step), len(learn.history.losses), training.fingerprint(learn.state))
    learn.fit(1, 1e-3)
    print("after", int(learn.state.step), len(learn.history.losses), training.fingerprint(learn.state))


if __name__ == "__main__":
    main(**join())
