"""Whatever ends a fit, and whoever looks on: the learner has the newest state, and its history agrees with it."""

import copy
import gc
import signal
import threading
import weakref

import jax
import jobs
import numpy as np
import pytest
from small import Torn, data, learner

from jaxfast import training


@pytest.fixture(autouse=True)
def interruptible():
    """What runs in the background of a shell ignores SIGINT, and its children do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def values(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.variables)]


def same(a, b):
    return all(map(np.array_equal, a, b))


def whole(learn, steps=None):
    """The state can be used, has as many steps as the history, and another fit works."""
    taken = int(learn.state.step)
    assert len(learn.history.losses) == len(learn.history.lrs) == len(learn.history.momentums) == taken
    assert steps is None or taken == steps
    assert np.isfinite(learn.validate()["loss"])
    learn.fit(1, 1e-3)
    assert int(learn.state.step) == taken + 8 == len(learn.history.losses)


def test_a_state_is_a_value_for_ever():
    learn = learner()
    first, before = learn.state, values(learn.state)
    learn.fit(1, 1e-3)
    second, between = learn.state, values(learn.state)
    learn.fit(1, 1e-3)
    assert same(values(first), before) and same(values(second), between) and not same(before, between)
    learn.state = first
    learn.fit(1, 1e-3)
    assert same(values(learn.state), between)


def test_a_state_that_nobody_holds_is_freed():
    learn = learner()
    leaf = weakref.ref(jax.tree.leaves(learn.state.params)[0])
    learn.fit(1, 1e-3)
    gc.collect()
    assert leaf() is None


def test_a_copy_is_independent():
    learn = learner()
    other, before = copy.copy(learn), values(learn.state)
    learn.fit(1, 1e-3)
    assert same(values(other.state), before) and len(other.history) == 0
    other.fit(1, 1e-3)
    assert same(values(other.state), values(learn.state)) and other.history.losses == learn.history.losses


@pytest.mark.parametrize("error", [ValueError("a recipe"), KeyboardInterrupt(), MemoryError(), SystemExit(1)])
def test_a_recipe_that_fails_loses_nothing(error):
    def recipe(epoch, metrics, state):
        if epoch == 1:
            raise error

    learn = learner()
    with pytest.raises(type(error)):
        learn.fit(3, 1e-3, after_epoch=[recipe])
    assert len(learn.history) == 2
    whole(learn, 16)


def test_data_that_cannot_be_read_lose_nothing():
    import dataclasses

    task = data()
    learn = learner(dataclasses.replace(task, train=Torn(task.train, 6)), resident=False)
    with pytest.raises(OSError, match="img_0042.jpg"):
        learn.fit(2, 1e-3)
    assert 0 < int(learn.state.step) < 8
    plain = learner(resident=False)
    program = plain.task.training_program(plain.trainable, plain.programs)
    rows = training.hyper_rows(int(learn.state.step), [1e-3] * 3, 0.95, 0.01)
    for piece in training.run(plain.state, program.chunk, plain.task.source, rows):
        state = piece.state
    assert same(values(state), values(learn.state))
    whole(learn)


def test_an_interrupt_waits_for_the_publication():
    seen = []
    with training.Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held:
            with interrupts.held:  # within itself
                signal.raise_signal(signal.SIGINT)
                seen.append("dispatched")
            seen.append("published")
        assert seen == ["dispatched", "published"]
    with pytest.raises(KeyboardInterrupt), training.Interrupts():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("moment", [1, 2, 5])
def test_an_interrupt_during_a_dispatch_finds_the_new_state(moment, monkeypatch):
    """The moment in which the old state's memory is taken and the new one is not there yet."""
    learn, plain, dispatches = learner(resident=False), learner(resident=False), []
    original = training.Task.training_program

    def interrupted(self, trainable, programs):
        program = original(self, trainable, programs)

        def chunk(*arguments):
            results = program.chunk(*arguments)
            dispatches.append(None)
            if len(dispatches) == moment:
                signal.raise_signal(signal.SIGINT)
            return results

        return program._replace(chunk=chunk)

    monkeypatch.setattr(training.Task, "training_program", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 1e-3)
    monkeypatch.undo()
    # the first one may be ended while it compiles: the state before it stays
    assert int(learn.state.step) == (0 if moment == 1 else moment)
    if moment > 1:
        program = plain.task.training_program(plain.trainable, plain.programs)
        rows = training.hyper_rows(moment, [1e-3] * 3, 0.95, 0.01)
        for piece in training.run(plain.state, program.chunk, plain.task.source, rows):
            state = piece.state
        assert same(values(state), values(learn.state))
    whole(learn)


def test_other_threads_read_whole_states_while_a_fit_runs():
    learn = learner(resident=False)
    errors, steps, over = [], set(), threading.Event()

    def read():
        while not over.is_set():
            try:
                state = learn.state
                steps.add(int(state.step))
                assert all(np.isfinite(leaf).all() for leaf in values(state))
            except Exception as error:  # what is looked for
                errors.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    learn.fit(4, 1e-3)
    over.set()
    for reader in readers:
        reader.join()
    assert not errors and len(steps) > 1
    whole(learn, 32)


def test_an_interrupt_that_is_swallowed_comes_again():
    """What a callback of the garbage collector raises is printed and forgotten."""
    reached = []
    with pytest.raises(KeyboardInterrupt), training.Interrupts() as interrupts:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            reached.append("swallowed")
        with interrupts.held:
            reached.append("dispatched")
        reached.append("never")
    assert reached == ["swallowed", "dispatched"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "step", "sentence"),
    [("data", 8, "OSError cannot read img_0042.jpg"), ("recipe", 16, "ValueError the log cannot be written")],
)
def test_what_fails_in_one_process_ends_the_fit_in_all(what, step, sentence):
    """Data take all back to the last epoch (the steps since then had other rows); after a recipe the state is good."""
    found = []
    for text in jobs.run("failing", processes=2, devices=4, what=what):
        lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
        assert lines["state"][:2] == [str(step)] * 2 and lines["after"][:2] == [str(step + 8)] * 2, text
        found.append((" ".join(lines["error"]), lines["state"], lines["after"]))
    (one, *values), (other, *others) = found
    assert one.startswith("RuntimeError another process of this job failed") and f"all are at step {step}" in one
    assert other == sentence and values == others
    (whole,) = jobs.run("failing", processes=1, devices=8, what="nothing", epochs=step // 8)
    assert whole.splitlines()[-2].split()[:3] == ["state", str(step), str(step)]
