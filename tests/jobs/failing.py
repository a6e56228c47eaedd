"""A fit that fails in the last process of a job: its data cannot be read, or a recipe raises. Then it trains on."""

import dataclasses

import jax
import small

from jaxfast import training
from jobs import join


def main(what, epochs=300):
    last, task = jax.process_index() == jax.process_count() - 1, small.data()
    if what == "data" and last:
        task = dataclasses.replace(task, train=small.Torn(task.train, 13))
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
