"""Progressive resizing, and fine-tuning that keeps its best epoch."""

import jax
import numpy as np
import pytest
from small import arrays, compilations, learner

from jaxfast import tabular


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_a_resized_learner_keeps_its_weights_and_compiles_each_size_once():
    learn = learner()
    learn.fit_one_cycle(1, 1e-3)
    small, state, train = learn.data, learn.state, learn.data.train
    learn.resize(24)
    assert learn.state is state and learn.data.size == (24, 24)
    np.testing.assert_array_equal(learn.data.train.index, train.index)
    np.testing.assert_array_equal(learn.data.valid.targets, small.valid.targets)
    assert learn.data.train.batch(np.arange(2))["image"].shape == (2, 24, 24, 3)
    with compilations() as first:
        learn.fit_one_cycle(1, 1e-3)
    assert sum(name == "jit(chunk)" for name in first) == 1
    assert learn.data is not small and len(learn.history) == 2
    with compilations() as again:
        for size in (16, 24):
            learn.resize(size)
            learn.fit_one_cycle(1, 1e-2)
    assert not {"jit(chunk)", "jit(evaluation)"} & set(again)
    assert learn.validate()["accuracy"] > 0.9
    assert learn.predict(arrays(3)[0][0]).label in learn.data.classes


def test_a_cycle_in_parts_is_the_cycle():
    whole, parts = learner(), learner()
    whole.fit_one_cycle(3, 1e-2, pct_start=0.4)
    parts.fit_one_cycle(3, 1e-2, pct_start=0.4, part=(0, 2))
    parts.resize(24)
    parts.resize(16)
    parts.fit_one_cycle(3, 1e-2, pct_start=0.4, part=(2, 3))
    assert _same(whole.state.params, parts.state.params)
    np.testing.assert_array_equal(whole.history.lrs, parts.history.lrs)
    np.testing.assert_array_equal(whole.history.momentums, parts.history.momentums)
    assert len(parts.history) == 3


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((1, 4), r"part=\(1, 4\) is no part of 3 epochs: give 0 <= start < end <= 3"),
        ((2, 2), "is no part of 3 epochs"),
        ((-1, 2), "the start of part=-1: give a whole number from 0 on"),
        ((0, 1.5), "the end of part=1.5: give a whole number from 1 on"),
        (2, "part=2: give the first epoch and the one after the last, such as part=\\(0, 3\\)"),
    ],
)
def test_what_is_no_part_of_a_cycle_is_refused(part, message):
    with pytest.raises(ValueError, match=message):
        learner().fit_one_cycle(3, 1e-2, part=part)


def test_resizing_to_the_same_size_changes_nothing():
    learn, other = learner(), learner()
    learn.fit_one_cycle(1, 1e-3)
    other.resize(24)
    other.resize(16)
    other.fit_one_cycle(1, 1e-3)
    assert _same(learn.state.params, other.state.params)


def test_what_cannot_be_resized_is_said():
    learn = learner()
    with pytest.raises(ValueError, match="size=1: give a side in pixels"):
        learn.resize(1)
    with pytest.raises(ValueError, match="presize=20 is smaller than size=24"):
        learn.resize(24, presize=20)
    assert learn.data.size == (16, 16)
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(64.0), "b": ["x", "y"] * 32})
    table = tabular.learner(tabular.from_frame(frame, target="b", batch_size=8), quiet=True)
    with pytest.raises(ValueError, match="TableData has no size: only images can be resized"):
        table.resize(24)


def test_fine_tune_goes_back_to_its_best_epoch(capsys, tmp_path):
    learn = learner(quiet=False)
    # the second cycle begins at a thousand times its rate, and spoils what the frozen one learnt
    learn.fine_tune(2, 0.01, freeze_epochs=2, lr_mult=1.0, div=1e-3, keep_best=True)
    losses = [epoch["valid_loss"] for epoch in learn.history.epochs]
    best = int(np.argmin(losses))
    assert best < 2 and learn.validate()["loss"] == pytest.approx(losses[best], rel=1e-5)
    assert f"kept epoch {best}: valid_loss {losses[best]:.4f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no metric 'acuracy'.*did you mean 'accuracy'"):
        learn.fine_tune(1, keep_best="acuracy")
    with pytest.raises(ValueError, match="keep_best\\(\\) forgets at a restart: give Checkpoints"):
        learner(checkpoints=tmp_path).fine_tune(1, keep_best=True)
