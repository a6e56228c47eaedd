"""The learner: one compilation, lr_find without a trace, freezing, exact files, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import arrays, compilations, data, learner, module

from jaxfast import losses, training, vision
from jaxfast.learner import Learner


def leaves(learn):
    return [
        np.asarray(jax.random.key_data(x) if x.dtype == learn.state.key.dtype else x)
        for x in jax.tree.leaves(learn.state)
    ]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def trained():
    """A learner after one cycle over the small task; tests that change it load it back."""
    learn = learner()
    learn.fit_one_cycle(5, 1e-2)
    return learn


def test_it_learns(trained):
    assert trained.validate()["accuracy"] > 0.9
    assert [row["epoch"] for row in trained.history.epochs] == [0, 1, 2, 3, 4]
    assert len(trained.history.losses) == 5 * 8
    assert trained.history.epochs[-1]["valid_loss"] < trained.history.epochs[0]["valid_loss"]


def test_a_second_fit_compiles_nothing():
    learn = learner()
    with compilations() as first:
        learn.fit_one_cycle(1, 1e-3)
    assert sum(name == "jit(chunk)" for name in first) == 1
    assert sum(name == "jit(evaluation)" for name in first) == 1
    with compilations() as again:
        learn.fit_one_cycle(2, slice(1e-4, 1e-2), pct_start=0.4, div=10, weight_decay=0.1)
    assert again == []
    with compilations() as others:
        learn.lr_find(steps=12)
        learn.fit(1, 1e-3)
        learn.fit_flat_cos(1, 1e-3)
        learn.fit_sgdr(2, 1, 1e-3, cycle_mult=1)
    # other kinds of schedule may bring small programs of their own for their table, never a training program
    assert not {"jit(chunk)", "jit(evaluation)"}.intersection(others)


def test_lr_find_leaves_the_learner_as_it_is(trained):
    before = leaves(trained)
    found = trained.lr_find(steps=30)
    assert same(before, leaves(trained))
    assert len(found.lrs) == len(found.losses) == len(found.raw_losses) <= 30
    assert found.lrs[0] == pytest.approx(1e-7)
    assert all(1e-8 < value < 10 for value in found.suggestions.values())


def test_lr_find_equals_single_steps():
    learn = learner(devices=jax.devices()[:1], norm_groups=2)
    found = learn.lr_find(steps=10, start=1e-5, end=1e-2)
    assert len(found.lrs) == 10

    # the same chunk program, one step at a time: bit for bit
    part, feed = learn.trainable, learn.task.source
    chunk = learn.task.training_program(part, learn.programs).chunk
    rows = {
        "lr": np.repeat(found.lrs[:, None], 3, 1).astype(np.float32),
        "momentum": np.full(10, 0.9, np.float32),
        "weight_decay": np.full(10, 0.01, np.float32),
    }
    state, losses_ = jax.tree.map(jnp.copy, learn.state), []
    for i in range(10):
        row = {name: values[i : i + 1] for name, values in rows.items()}
        for piece in training.run(state, chunk, feed, row):
            state = piece.state
            losses_.extend(piece.losses.tolist())
    np.testing.assert_array_equal(losses_, found.raw_losses)

    # a step jitted on its own, fed by the host: to 1e-5
    step = jax.jit(
        training.make_step(
            learn.module, losses.cross_entropy, learn.optimizer, part, augment=learn.data.augment, norm_groups=2
        )
    )
    order = np.concatenate([training.epoch_order(learn.state.key, epoch, 256) for epoch in range(2)])
    state = learn.state
    for i in range(10):
        batch = learn.data.train.batch(order[i * 32 : (i + 1) * 32])
        state, metrics = step(state, batch, {name: values[i] for name, values in rows.items()})
        assert float(metrics["loss"]) == pytest.approx(found.raw_losses[i], rel=1e-5)


@pytest.mark.parametrize("train_norm", [True, False])
def test_frozen_parameters_stay_bit_identical(train_norm):
    learn = learner(train_norm=train_norm)
    learn.freeze()
    before = jax.device_get(learn.state.variables)
    learn.fit(1, 1e-2)
    after = jax.device_get(learn.state.variables)
    changed = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(before)[0]:
        new = after
        for key in path:
            new = new[key.key]
        if not np.array_equal(leaf, new):
            changed.add(jax.tree_util.keystr(path, simple=True, separator="/"))
    body = {path for path in changed if "/body/" in path}
    if train_norm:
        assert body and all("norm" in path for path in body)
        assert any(path.startswith("batch_stats/body") for path in body)
    else:
        assert not body
    assert any(path.startswith("params/head") for path in changed)


def test_a_change_of_the_trained_part_starts_a_fresh_optimizer(trained):
    learn = learner()
    learn.fit(1, 1e-3)
    count = lambda: max(
        int(x) for x in jax.tree.leaves(learn.state.opt_state) if x.shape == () and x.dtype == jnp.int32
    )
    assert count() == 8
    learn.unfreeze()
    assert count() == 8, "the trained part is the same, so the optimizer goes on"
    learn.freeze_to(-2)
    assert count() == 0


def test_fine_tune_is_two_cycles(trained):
    learn = learner()
    learn.fine_tune(2, 4e-3, freeze_epochs=1)
    lrs = np.array(learn.history.lrs)
    assert lrs.shape == (24, 3)
    # frozen: slice(lr) gives a tenth of it to all groups but the last, and the peak lies at 99 % of the cycle
    assert lrs[7, 2] == pytest.approx(4e-3, rel=0.1)
    np.testing.assert_allclose(lrs[:8, 0] * 10, lrs[:8, 2], rtol=1e-5)
    # unfrozen: half the rate for the last group, a hundredth of that for the first; it starts at a fifth
    np.testing.assert_allclose(lrs[8], [2e-5 / 5, 2e-4 / 5, 2e-3 / 5], rtol=1e-5)
    assert learn.frozen_to == 0


def test_saved_and_loaded(trained, tmp_path):
    trained.save(tmp_path / "model")
    before = leaves(trained)
    predictions = trained.get_preds()[0]
    other = learner(seed=1)
    other.load(tmp_path / "model")
    assert same(before, leaves(other))
    np.testing.assert_array_equal(predictions, other.get_preds()[0])
    # training goes on with the same numbers
    trained.fit(1, 1e-3)
    other.fit(1, 1e-3)
    assert same(leaves(trained), leaves(other))
    trained.load(tmp_path / "model")


def test_a_frozen_learner_loads_as_frozen(tmp_path):
    learn = learner()
    learn.freeze()
    learn.save(tmp_path / "frozen")
    other = learner()
    other.load(tmp_path / "frozen")
    assert other.frozen_to == 2 and "norm layers only" in repr(other.summary())


def test_streamed_training_equals_resident_training():
    resident, streamed = learner(resident=True), learner(resident=False)
    for learn in (resident, streamed):
        learn.fit_one_cycle(2, 1e-2)
    np.testing.assert_allclose(resident.history.losses, streamed.history.losses, rtol=1e-4)
    assert resident.validate()["accuracy"] == streamed.validate()["accuracy"]


def test_predictions_agree(trained):
    probabilities, targets = trained.get_preds()
    assert probabilities.shape == (64, 3) and targets.shape == (64,)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    one = trained.predict(trained.data.valid[3])
    np.testing.assert_allclose(one.probabilities, probabilities[3], rtol=1e-4, atol=1e-6)
    assert one.label == trained.data.classes[one.index]
    scores = trained.interpret()
    assert scores.confusion_matrix().sum() == 64
    assert trained.validate()["loss"] == pytest.approx(scores.losses.mean(), rel=1e-5)
    assert trained.validate()["accuracy"] == pytest.approx((probabilities.argmax(1) == targets).mean())


def test_padded_rows_do_not_count():
    learn = learner(data(n=325, valid=0.2), metrics=["accuracy", "balanced_accuracy"])
    assert len(learn.data.valid) % 32
    probabilities, targets = learn.get_preds()
    results = learn.validate()
    assert results["accuracy"] == pytest.approx((probabilities.argmax(1) == targets).mean())
    assert results["loss"] == pytest.approx(-np.log(probabilities[np.arange(len(targets)), targets]).mean(), rel=1e-4)
    recalls = [(probabilities.argmax(1) == targets)[targets == c].mean() for c in range(3)]
    assert results["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_pictures(trained):
    found = trained.lr_find(steps=10)
    for figure in (
        trained.show_batch(4),
        trained.show_results(4),
        found.plot(),
        trained.history.plot(),
        trained.history.plot_schedule(),
        trained.history.plot_metrics(),
        trained.heatmap(trained.data.valid[0]).plot(),
        trained.interpret().plot_top_losses(4),
    ):
        assert figure.axes
    assert "group" in repr(trained.summary()) and "accuracy" in repr(trained.history)


def test_what_is_shown_fits_into_a_cell(trained):
    """Short texts that say what a thing is, with class names beside probabilities and never an array."""
    shown = [
        (
            trained,
            r"Learner: ImageClassifier: [\d,]+ parameters, .* computed in float32\n"
            r"  256 training and 64 validation examples of 3 classes \(red, green, blue\)\n"
            r"  \d+ epochs, \d+ steps: valid_loss \d\.\d{4}, accuracy \d\.\d{4}",
        ),
        (trained.interpret(), r"Interpretation: 64 examples of 3 classes, accuracy [01]\.\d{4}, loss \d\.\d{4}.*"),
        (
            trained.heatmap(trained.data.valid[0]),
            r"Heatmap: (red|green|blue), probability \d\.\d{3}; \d+ x \d+ cells of layer \w+, image 16 x 16",
        ),
        (
            trained.predict(trained.data.valid[0]),
            r"Prediction\('\w+', index=\d, probabilities: "
            r"(red|green|blue) [01]\.\d{3}(, (red|green|blue) 0\.\d{3}){2}\)",
        ),
    ]
    for thing, pattern in shown:
        assert re.fullmatch(pattern, repr(thing)), repr(thing)
    assert repr(learner()).count("\n") == 1


def test_training_stops_at_the_last_good_state():
    learn = learner()
    learn.fit(1, 1e-3)
    steps = len(learn.history.losses)
    with pytest.raises(
        FloatingPointError, match=rf"not finite .* at step {steps + 3} of training \(learning rate nan\)"
    ):
        learn.fit(1, lambda step: jnp.where(step < 3, 1e-3, jnp.nan))
    assert len(learn.history.losses) == steps == int(learn.state.step)
    assert all(np.isfinite(leaf).all() for leaf in leaves(learn))
    learn.fit(1, 1e-3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: learner(optimizer="adamx"), "unknown optimizer 'adamx'.*did you mean 'adamw'"),
        (lambda: learner(metrics=["acuracy"]), "unknown metric 'acuracy'.*did you mean 'accuracy'"),
        (lambda: learner(precision="bf17"), "unknown precision 'bf17'.*did you mean 'bf16'"),
        (lambda: learner(data(batch_size=12)), "batch_size 12 does not split over 8 devices"),
        (lambda: learner(norm_groups=5), "batch_size 32 does not split into norm_groups=5"),
        (lambda: learner().freeze_to(3), "freeze_to\\(3\\) names none of the model's 3 parameter groups"),
        (lambda: learner().fit(1, [1e-3, 1e-2]), "got 2 rates for 3 parameter groups"),
        (lambda: learner().fit(0, 1e-3), "epochs=0: give a whole number from 1 on"),
        (lambda: learner().lr_find(start=1, end=0.1), "0 < start < end"),
        (lambda: learner().lr_find(steps=1), "at least 2 steps"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_something_else(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        trained.load(tmp_path / "none")
    (tmp_path / "text").mkdir()
    with pytest.raises(ValueError, match="is not a checkpoint"):
        trained.load(tmp_path / "text")
    images, labels = arrays()
    two = vision.from_arrays(images, labels % 2, classes=["a", "b"], batch_size=16)
    other = Learner(two, module(2), loss=losses.cross_entropy, quiet=True)
    other.save(tmp_path / "two")
    before = leaves(trained)
    with pytest.raises(ValueError, match="the classes were"):
        trained.load(tmp_path / "two")
    assert same(before, leaves(trained))
