"""Recipes after each epoch: verdicts from tables of metrics, and the learner that obeys them."""

import csv
import dataclasses

import jax
import numpy as np
import pandas as pd
import pytest
from small import data, learner

from jaxfast.training.recipes import Verdict, csv_log, early_stop, keep_best, reduce_on_plateau


class State:
    step = 7


def play(recipe, values, monitor="valid_loss"):
    return [recipe(i, {monitor: value}, State) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    "options, values, stops",
    [
        ({"patience": 2}, [1.0, 0.9, 0.95, 0.92, 0.5], [0, 0, 0, 1, 0]),
        ({"patience": 1}, [1.0, 1.0], [0, 1]),
        ({"patience": 2, "min_delta": 0.1}, [1.0, 0.95, 0.91, 0.8], [0, 0, 1, 0]),
        ({"patience": 1, "monitor": "accuracy"}, [0.5, 0.6, 0.55], [0, 0, 1]),
        ({"patience": 1, "monitor": "score", "lower": True}, [0.5, 0.6], [0, 1]),
        ({"patience": 1}, [1.0, float("nan")], [0, 1]),
    ],
)
def test_early_stop(options, values, stops):
    verdicts = play(early_stop(**options), values, options.get("monitor", "valid_loss"))
    assert [bool(verdict and verdict.stop) for verdict in verdicts] == [bool(stop) for stop in stops]


def test_reduce_on_plateau():
    verdicts = play(reduce_on_plateau(factor=0.5, patience=2), [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.6])
    assert [verdict.lr_scale if verdict else 1.0 for verdict in verdicts] == [1, 1, 0.5, 1, 0.5, 1, 1]


def test_unknown_metric():
    with pytest.raises(ValueError, match="no metric 'acuracy' to watch.*did you mean 'accuracy'"):
        early_stop("acuracy")(0, {"valid_loss": 1.0, "accuracy": 0.5}, State)


def test_a_learner_stops_early_and_scales_its_rates():
    learn = learner()
    seen = []

    def stop_at_two(epoch, metrics, state):
        seen.append((epoch, set(metrics), int(state.step)))
        return Verdict(stop=epoch == 1)

    def halve(epoch, metrics, state):
        return Verdict(lr_scale=0.5)

    learn.fit(5, 1e-3, after_epoch=[halve, stop_at_two])
    assert seen == [(0, {"train_loss", "valid_loss", "accuracy"}, 8), (1, {"train_loss", "valid_loss", "accuracy"}, 16)]
    rates = np.array(learn.history.lrs)[:, 0]
    np.testing.assert_allclose(rates, [1e-3] * 8 + [5e-4] * 8)


def test_the_best_epoch_is_put_back():
    learn = learner()
    learn.fit(3, 3e-3)
    before = learn.validate()
    kept = keep_best("valid_loss")
    # the first epoch barely moves the weights; the rest of the fit breaks them
    learn.fit(3, lambda step: np.float32(1e-6) + (step >= 8) * np.float32(3.0), after_epoch=[kept])
    losses = [epoch["valid_loss"] for epoch in learn.history.epochs[-3:]]
    assert kept.epoch == 3 and losses[0] < min(losses[1:])
    assert learn.validate()["loss"] == pytest.approx(kept.value, rel=1e-6)
    assert learn.validate()["loss"] == pytest.approx(before["loss"], rel=0.3)
    # what was kept is a copy: training goes on from it
    learn.fit(1, 1e-3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learn.state.params))


def test_csv(tmp_path):
    path = tmp_path / "log.csv"
    learn = learner()
    learn.fit(2, 1e-3, after_epoch=[csv_log(path)])
    learn.fit(1, 1e-3, after_epoch=[csv_log(path)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"] and [row["step"] for row in rows] == ["8", "16", "24"]
    for row, epoch in zip(rows, learn.history.epochs, strict=True):
        assert float(row["accuracy"]) == epoch["accuracy"]
    with pytest.raises(ValueError, match="has the columns epoch, step"):
        csv_log(path)(0, {"other": 1.0}, State)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    from jaxfast.training.recipes import tensorboard_log

    recipe = tensorboard_log(tmp_path)
    recipe(0, {"valid_loss": 0.5, "accuracy": 0.75}, State)
    assert recipe.finish(State) is State
    data = next(tmp_path.iterdir()).read_bytes()
    found = {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        data = data[16 + length :]
    assert found == {"valid_loss": (7, 0.5), "accuracy": (7, 0.75)}


def scored(values, **options):
    """A learner whose metric "score" takes these values in turn."""
    from jaxfast.metrics import HostMetric

    scores = iter(values)
    return learner(metrics=[HostMetric("score", lambda outputs, targets: next(scores))], **options)


def scores_of(learn, since=0):
    return [epoch["score"] for epoch in learn.history.epochs[since:]]


def test_patience_begins_anew_with_each_fit():
    learn, stop = scored([0.8, 0.9, 0.7, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88]), early_stop("score", patience=2)
    learn.fit(4, 1e-3, after_epoch=[stop])
    learn.fit(5, 1e-3, after_epoch=[stop])
    assert scores_of(learn) == [0.8, 0.9, 0.7, 0.6, 0.7, 0.75, 0.8, 0.85, 0.88]


def test_patience_over_several_fits_is_a_choice():
    learn, stop = scored([0.8, 0.9, 0.7, 0.6]), early_stop("score", patience=2, reset_on_fit=False)
    learn.fit(3, 1e-3, after_epoch=[stop])
    learn.fit(3, 1e-3, after_epoch=[stop])
    assert scores_of(learn) == [0.8, 0.9, 0.7, 0.6]


def test_rates_are_reduced_anew_with_each_fit():
    learn, reduce = scored([0.9, 0.8, 0.5, 0.6]), reduce_on_plateau("score", factor=0.5, patience=1)
    learn.fit(2, 1e-3, after_epoch=[reduce])
    learn.fit(2, 1e-3, after_epoch=[reduce])
    np.testing.assert_allclose(np.array(learn.history.lrs)[:, 0], 1e-3)  # the second fit rises


def test_the_best_of_a_fit_is_of_that_fit():
    learn, kept = scored([0.9, 0.8, 0.5, 0.4]), keep_best("score")
    learn.fit(2, 1e-3, after_epoch=[kept])
    assert (kept.epoch, kept.value) == (0, 0.9)
    before = jax.tree.leaves(learn.state.params)[0]
    learn.fit(2, 1e-3, after_epoch=[kept])
    assert (kept.epoch, kept.value) == (2, 0.5)
    assert not np.array_equal(jax.tree.leaves(learn.state.params)[0], before)


def test_fine_tune_keeps_the_best_of_both_its_cycles(capsys):
    learn = scored([0.9, 0.5, 0.4], quiet=False)
    learn.fine_tune(2, 1e-3, keep_best="score")
    assert "kept epoch 0: score 0.9000" in capsys.readouterr().out


def test_an_epoch_of_nan_is_not_the_best():
    learn, kept = scored([float("nan"), 0.5, 0.4]), keep_best("score")
    learn.fit(3, 1e-3, after_epoch=[kept])
    assert kept.epoch == 1


@pytest.mark.parametrize(
    ("metric", "reason"),
    [("roc_auc", "no class has examples on both sides"), ("r2", "compares numbers one by one")],
)
def test_a_metric_that_cannot_be_computed_is_said_before_the_first_epoch(metric, reason):
    task = data()
    one_class = dataclasses.replace(task.valid, targets=np.full_like(task.valid.targets, 1))
    learn = learner(dataclasses.replace(task, valid=one_class), metrics=["accuracy", metric])
    with pytest.raises(ValueError, match=f"the metric {metric} cannot be computed on the validation set: .*{reason}"):
        learn.fit(1, 1e-3)
    assert int(learn.state.step) == 0
    learn.metrics = ["accuracy"]
    learn.fit(1, 1e-3)


def test_texts_of_one_class_are_seen_too():
    from jaxfast import text

    frame = pd.DataFrame({"text": ["a good one", "a bad one"] * 20, "label": list("pn") * 20})
    task = text.from_frame(frame, label="label", batch_size=8, valid=list(range(0, 40, 2)))
    config = {"emb_size": 8, "hidden_size": 8, "n_layers": 1}
    learn = text.classifier_learner(task, config=config, metrics=["roc_auc"], quiet=True)
    with pytest.raises(ValueError, match="the metric roc_auc cannot be computed"):
        learn.fit(1, 1e-3)
