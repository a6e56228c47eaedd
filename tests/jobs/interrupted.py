"""A fit without checkpoints that an interrupt ends in all processes of a job; afterwards it trains on."""

import signal
import time

import small

from jaxfast import training
from jobs import join


def main(epochs=40, pause=0.2):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits one that ignores it
    learn = small.learner()

    def after_epoch(epoch, metrics, state):
        print("epoch", epoch, flush=True)
        time.sleep(pause)

    try:
        learn.fit(epochs, 1e-3, after_epoch=[after_epoch])
        print("not interrupted")
    except KeyboardInterrupt:
        print("interrupted", int(learn.state.step), len(learn.history.losses), training.fingerprint(learn.state))
    learn.fit(1, 1e-3)
    print("after", int(learn.state.step), len(learn.history.losses), training.fingerprint(learn.state))


if __name__ == "__main__":
    main(**join())
