"""The process that `interrupts` attacks: a learner of one kind that is trained again and again from its first state."""

import dataclasses
import faulthandler
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from golden import learners, tasks

from jaxfast import collab, optim, tabular, text, training, vision

COLD = 200
"""Epochs of the fit whose interrupt may come while it compiles."""
LR = 1e-3


def images(**options):
    rng, labels = np.random.default_rng(0), np.arange(2400) % 3
    pixels = rng.integers(0, 256, (len(labels), 24, 24, 3)).astype(np.uint8)
    data = vision.from_arrays(pixels, labels, classes=["a", "b", "c"], batch_size=32, augment=False)
    return learners.net(data, **options)


def table():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"town": rng.choice(["Aa", "Bo", "Cy"], 20_000), "x": rng.normal(size=20_000)})
    frame["rich"] = np.where((frame.town == "Aa") & (frame.x > -0.5), "yes", "no")
    data = tabular.from_frame(frame, target="rich", batch_size=512)
    return tabular.learner(data, layers=(200, 100), ps=0.1, embed_p=0.1, **learners.one())


def ratings():
    rng = np.random.default_rng(2)
    columns = {"user": rng.integers(0, 2000, 40_000), "item": rng.integers(0, 1500, 40_000)}
    data = collab.from_frame(pd.DataFrame({**columns, "rating": rng.integers(1, 6, 40_000)}), batch_size=1024)
    return collab.learner(data, n_factors=64, y_range=(0, 5.5), **learners.one())


def language():
    data = text.from_texts(tasks.sentences(1200)[0], batch_size=32, bptt=16, min_freq=1)
    config = {"emb_size": 48, "hidden_size": 64, "n_layers": 1}
    return text.language_learner(data, config=config, drop_mult=0.5, **learners.one())


BUILDERS: dict[str, Callable] = {
    "resident": images,
    "threads": lambda: images(resident=False),
    "workers": lambda: images(resident=False, workers=2),
    "table": table,
    "ratings": ratings,
    "language": language,
}


class Reference:
    """The uninterrupted run, one step per dispatch, as far as it was asked for: `marks[k]` after k steps.

    `marks`: the fingerprint of every part of the state; `losses`: of every step.
    """

    def __init__(self, learn, first):
        source = learn.task.source  # the learner's own stream keeps its place
        self.feed = dataclasses.replace(source, workers=0) if hasattr(source, "workers") else source
        self.chunk = learn.task.training_program(learn.trainable, learn.programs).chunk
        rates = optim.discriminative(LR, learn.trainable.n_groups)
        self.row = training.hyper_rows(1, rates, learn.moms[0], learn.weight_decay)
        self.state, self.marks, self.losses = first, [marks(first)], []

    def reach(self, k: int) -> None:
        """Train until `marks[k]` is there."""
        while len(self.marks) <= k:
            for piece in training.run(self.state, self.chunk, self.feed, self.row):
                self.state = piece.state
                self.losses.extend(piece.losses.tolist())
            self.marks.append(marks(self.state))


def marks(state) -> dict[str, str]:
    return {field.name: training.fingerprint(getattr(state, field.name)) for field in dataclasses.fields(state)}


def seen(learn) -> dict:
    """What a learner holds; `error` where it holds nothing that can be read."""
    try:
        return {"k": int(learn.state.step), "marks": marks(learn.state), "losses": list(learn.history.losses)}
    except RuntimeError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def differences(found: dict, reference: Reference, least: int = 0) -> list[str]:
    """In what `found` (`seen`) is not the uninterrupted run after as many steps; `least`: steps known to be done."""
    if "error" in found:
        return [found["error"]]
    k, losses = found["k"], found["losses"]
    reference.reach(max(k, len(losses)))
    wrong = [f"{name} differs" for name, mark in reference.marks[k].items() if found["marks"][name] != mark]
    if len(losses) != k:
        wrong.append(f"{len(losses)} losses for {k} steps")
    if losses != reference.losses[: len(losses)]:
        first = next(i for i, loss in enumerate(losses) if loss != reference.losses[i])
        wrong.append(f"the loss of step {first} differs")
    if k < least:
        wrong.append(f"{k} steps where {least} had been seen")
    return wrong


class Victim:
    """A learner of one kind whose uninterrupted fit takes `seconds` at least, between its first epoch and its end."""

    def __init__(self, kind: str, seconds: float):
        self.least = seconds
        self.copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self.learn = BUILDERS[kind]()
        self.first = self.copy(self.learn.state)
        self.steps = len(self.learn.data.train) // self.learn.data.batch_size
        self.ended: list[float] = []  # when the epochs of the fit ended

    def reset(self) -> None:
        self.learn.state, self.learn.history, self.ended = self.copy(self.first), training.History(), []

    def fit(self, epochs: int) -> None:
        def after_epoch(epoch, metrics, state):
            self.ended.append(time.perf_counter())

        self.learn.fit(epochs, LR, after_epoch=[after_epoch])

    def measure(self) -> None:
        """Find the number of epochs that takes long enough, compare that fit with the reference, and time it."""
        self.reference, self.epochs, span = Reference(self.learn, self.copy(self.first)), 3, 0.0
        while span < self.least:
            self.epochs = math.ceil(self.epochs * min(1.3 * self.least / span, 10)) if span else self.epochs
            self.reset()
            start = time.perf_counter()
            self.fit(self.epochs)
            self.seconds, span = time.perf_counter() - start, self.ended[-1] - self.ended[0]
        wrong = differences(seen(self.learn), self.reference, self.epochs * self.steps)
        if wrong:
            raise AssertionError(f"an uninterrupted fit is not the reference: {wrong}")

    def interrupt(self, delay: float, group: bool, epochs: int) -> dict:
        """Train, with a SIGINT after `delay` seconds; {"when": "in the fit" or "after its end", "wrong", "waited"}."""
        self.reset()
        result, sent = {"when": "in the fit", "wrong": []}, []

        def send():
            time.sleep(delay)
            sent.append(time.perf_counter())
            os.killpg(os.getpgrp(), signal.SIGINT) if group else os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        try:
            try:
                sender.start()
                self.fit(epochs)
                if not sent:
                    result["when"] = "after its end"
            except Exception as error:
                result["wrong"].append(f"the fit ended with {type(error).__name__}: {error}")
            sender.join()
            time.sleep(5)  # until it is interrupted
            result["wrong"].append("no KeyboardInterrupt came")
        except KeyboardInterrupt:
            result["waited"] = time.perf_counter() - sent[0]
        return result

    def attempt(self, chance: float, group: bool, cold: bool) -> dict:
        """Interrupt a fit at the moment `chance` (0 to 1) of its time, and train one epoch more."""
        result = self.interrupt(chance * (self.least if cold else self.seconds), group, COLD if cold else self.epochs)
        found, least = seen(self.learn), len(self.ended) * self.steps
        result |= {"k": found.get("k"), "cold": cold, "group": group, "chance": chance}
        next_epoch = None
        try:
            self.learn.fit(1, LR)
            next_epoch = seen(self.learn)
        except Exception as error:
            result["wrong"].append(f"the next fit ended with {type(error).__name__}: {error}")
        if cold:
            self.measure()
        result["wrong"] += differences(found, self.reference, least)
        if next_epoch is not None:
            after = differences(next_epoch, self.reference, found.get("k", 0) + self.steps)
            result["wrong"] += [f"after the next epoch, {what}" for what in after]
        return result


def main(kind: str, plan: list[dict], seconds: float) -> None:
    """In a process of its own: make all attempts of `plan` on one learner, and print one line for each."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a background job inherits ignores it
    faulthandler.register(signal.SIGUSR1)
    victim = Victim(kind, seconds)
    if not plan[0]["cold"]:
        victim.measure()
    print("@ {}", flush=True)
    for fate in plan:
        print("@", json.dumps(victim.attempt(**fate)), flush=True)
