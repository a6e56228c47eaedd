"""A fine-tuning with checkpoints that can be killed at any moment; started again, it goes on."""

import time

import small

from jaxfast import training
from jobs import join


def main(folder, epochs=8, every=3, pause=0.0, norm_groups=None, batch_size=32, shard=False):
    learn = small.learner(
        small.data(batch_size=batch_size),
        checkpoints=training.Checkpoints(folder, every=every),
        norm_groups=norm_groups,
        shard=shard,
    )

    def after_epoch(epoch, metrics, state):
        print("epoch", epoch, flush=True)
        time.sleep(pause)

    print("ready", flush=True)
    learn.fine_tune(epochs, 1e-2, after_epoch=[after_epoch])
    print("params", training.fingerprint(learn.state.params))
    print("state", training.fingerprint(learn.state), int(learn.state.step))
    print("losses", *learn.history.losses)
    print("valid", learn.validate()["loss"])


if __name__ == "__main__":
    main(**join())
