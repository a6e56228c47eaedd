"""A learner's task: what is assigned acts, equal work compiles once, and what is not needed leaves the device."""

import dataclasses
import functools
import gc
import weakref

import jax
import numpy as np
import pytest
from small import arrays, compilations, data, learner

from jaxfast import losses, schedules, training
from jaxfast.training.programs import by_value


def other(seed=1, **options):
    """Data of the same form with other images."""
    from jaxfast import vision

    images, labels = arrays(320, seed=seed)
    return vision.from_arrays(images, labels, classes=["red", "green", "blue"], batch_size=32, augment=True, **options)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_assigned_data_are_what_is_trained_and_validated():
    learn, fresh = learner(), learner(other())
    learn.data = other()
    assert len(learn.data.train) == 256 and learn.validate()["loss"] == pytest.approx(fresh.validate()["loss"])
    learn.fit(1, 1e-3)
    fresh.fit(1, 1e-3)
    assert same(learn.state.variables, fresh.state.variables) and learn.history.losses == fresh.history.losses


def test_data_of_equal_form_compile_nothing():
    learn = learner()
    use(learn)
    with compilations() as again:
        learn.data = other()
        use(learn)
        learn.freeze_to(0)
        use(learn)
    assert not again, again
    with compilations() as larger:
        learn.resize(24)
        use(learn)
    assert "jit(chunk)" in larger and "jit(evaluation)" in larger


def use(learn):
    learn.lr_find(steps=3)
    learn.fit(1, 1e-3)
    learn.validate()
    learn.get_preds()
    learn.predict(learn.data.valid[0])


def test_what_compiled_for_a_learner_is_kept_for_eight_programs_of_each_kind():
    programs = training.Programs()
    made = []
    for i in [*range(9), 8, 0]:
        programs.get("train", (i,), lambda i=i: made.append(i) or i)
    assert made == [*range(9), 0] and len(programs) == 8
    assert programs.get("evaluation", (3,), lambda: "another") == "another"


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (functools.partial(losses.focal, gamma=2.0), functools.partial(losses.focal, gamma=2.0), True),
        (functools.partial(losses.focal, gamma=2.0), functools.partial(losses.focal, gamma=1.0), False),
        ((1, functools.partial(max, [1])), (1, functools.partial(max, [1])), False),  # lists have no hash
        (data().augment, data().augment, True),
        (lambda: 1, lambda: 1, False),
    ],
)
def test_what_programs_are_told_apart_by(a, b, equal):
    assert (by_value(a) == by_value(b)) is equal and by_value(a) == by_value(a)


def test_old_data_leave_the_device():
    learn = learner()
    learn.fit(1, 1e-3)
    old = [weakref.ref(x) for x in (*learn.task.source.data.values(), *learn.task.held_out.data.values())]
    learn.data = other()
    learn.fit(1, 1e-3)
    gc.collect()
    assert [ref() for ref in old] == [None] * len(old)


def test_data_that_do_not_fit_are_refused_and_nothing_changes():
    from jaxfast import vision

    learn = learner()
    before, images = learn.task, arrays(64)[0]
    five = vision.from_arrays(images, np.arange(64) % 5, classes=list("abcde"), batch_size=32)
    with pytest.raises(ValueError, match="the model has 3 outputs, the data needs 5"):
        learn.data = five
    with pytest.raises(ValueError, match="batch_size 36 does not split into norm_groups=8"):
        learn.data = data(batch_size=36)
    with pytest.raises(ValueError, match="data is"):
        learn.data = images
    with pytest.raises(ValueError, match="unknown metric 'acuracy'"):
        learn.metrics = ["acuracy"]
    with pytest.raises(ValueError, match="is no function"):
        learn.loss = "cross_entropy"
    assert learn.task is before


def test_assigned_metrics_and_losses_act_and_data_stay_where_they_lie():
    learn = learner()
    source = learn.task.source
    learn.metrics = ["accuracy", "f1"]
    assert learn.validate().keys() == {"loss", "accuracy", "f1"} and learn.task.source is source
    learn.fit(1, 1e-3)
    assert "f1" in learn.history.epochs[-1]
    plain = learn.validate()["loss"]
    learn.loss = functools.partial(losses.cross_entropy, label_smoothing=0.3)
    assert learn.validate()["loss"] != plain and learn.task.source is source
    outputs, targets, _ = learn.evaluator.outputs(*held_out(learn))
    smoothed = losses.cross_entropy(outputs, targets, label_smoothing=0.3)
    assert learn.validate()["loss"] == pytest.approx(float(smoothed.mean()), rel=1e-5)
    np.testing.assert_allclose(learn.get_preds()[0].sum(1), 1, rtol=1e-5)


def held_out(learn):
    return learn.state.variables, learn.data.valid


def test_outputs_come_with_targets_and_losses_whatever_lies_where():
    learn = learner()
    variables, valid = held_out(learn)
    streamed, resident = (learn.evaluator.outputs(variables, rows) for rows in (valid, learn.task.held_out))
    for a, b in zip(streamed, resident, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(streamed.targets, valid.targets)
    expected = losses.cross_entropy(streamed.outputs, streamed.targets)
    np.testing.assert_allclose(streamed.losses, expected, rtol=1e-5, atol=1e-6)
    predictions = learn.evaluator.predictions(variables, valid)
    np.testing.assert_allclose(predictions.outputs, jax.nn.softmax(streamed.outputs), rtol=1e-5, atol=1e-6)


def test_a_task_is_a_value():
    task = learner().task
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.loss = losses.mse
    moved = task.replaced(norm_groups=2)
    assert (task.norm_groups, moved.norm_groups) == (8, 2) and moved.data is task.data


def test_a_driver_leaves_the_history_that_it_is_given():
    learn = learner()
    program = learn.task.training_program(learn.trainable, learn.programs)
    given = training.History()
    rows = training.hyper_rows(16, [1e-3] * 3, 0.9, 0.0)
    before = learn.state
    learn.state, history = training.fit_epochs(
        learn.state, program.chunk, learn.task.source, rows, 2, metrics=["accuracy"], history=given, quiet=True,
        validate=lambda variables: learn.evaluator.validate(variables, learn.task.held_out),
    )  # fmt: skip
    assert int(before.step) == 0 and np.isfinite(jax.tree.leaves(before.params)[0]).all()
    assert len(given) == 0 and not given.losses and len(history) == 2 and len(history.losses) == 16


@pytest.mark.parametrize(
    ("table", "schedule", "momentum"),
    [
        (
            training.one_cycle_table(40, (1e-3, 1e-2), 0.1, pct_start=0.4, div=10.0),
            lambda peak: schedules.one_cycle(40, peak, pct_start=0.4, div=10.0),
            schedules.one_cycle_momentum(40, pct_start=0.4),
        ),
        (training.flat_cosine_table(40, (1e-3, 1e-2), 0.1), lambda peak: schedules.flat_cosine(40, peak), 0.95),
        (
            training.sgdr_table(2, 10, (1e-3, 1e-2), 0.1, cycle_mult=3),
            lambda peak: schedules.sgdr(2, 10, peak, cycle_mult=3),
            0.95,
        ),
    ],
    ids=["one cycle", "flat cosine", "sgdr"],
)
def test_tables_are_their_schedules(table, schedule, momentum):
    steps = np.arange(40)
    assert table["lr"].shape == (40, 2) and table["lr"].dtype == np.float32
    for group, peak in enumerate((1e-3, 1e-2)):
        expected = [float(schedule(peak)(i)) for i in steps]
        np.testing.assert_allclose(table["lr"][:, group], expected, rtol=1e-5, atol=1e-9)
    expected = [float(momentum(i)) if callable(momentum) else momentum for i in steps]
    np.testing.assert_allclose(table["momentum"], expected, rtol=1e-6)
    np.testing.assert_allclose(table["weight_decay"], 0.1)
    assert training.cut(table, 10, 12)["lr"].tolist() == table["lr"][10:12].tolist()
