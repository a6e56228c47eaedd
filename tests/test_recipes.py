"""Recipes after each epoch: verdicts from tables of metrics, and the learner that obeys them."""

import csv

import jax
import numpy as np
import pytest
from small import learner

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
