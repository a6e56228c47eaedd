"""Sweeps: distributions, resuming after a kill, runs side by side equal to runs in turn, the forest."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter

import jax
import numpy as np
import pandas as pd
import pytest

from jaxfast import collab, sweep
from jaxfast.sweep import Forest, choice, integers, log_uniform, run, run_together, settings, uniform

SPACE = {
    "lr": log_uniform(1e-4, 1e-1),
    "dropout": uniform(0.0, 0.5),
    "width": integers(2, 5),
    "layers": choice((200, 100), (400,), ()),
}


def bowl(setting):
    """A made-up loss: the rate matters most, width a little, dropout and layers not at all."""
    return {"loss": (math.log10(setting["lr"]) + 2) ** 2 + 0.1 * setting["width"]}


# Settings


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_settings_lie_in_their_ranges(method):
    drawn = settings(SPACE, 64, method=method)
    assert all(1e-4 <= s["lr"] <= 1e-1 and 0 <= s["dropout"] <= 0.5 for s in drawn)
    assert {s["width"] for s in drawn} == {2, 3, 4, 5} and all(type(s["width"]) is int for s in drawn)
    assert {s["layers"] for s in drawn} == {(200, 100), (400,), ()}
    assert settings(SPACE, 5, method=method) == drawn[:5] == settings(SPACE, 64, method=method)[:5]
    assert settings(SPACE, 5, method=method, seed=1) != drawn[:5]


def test_sobol_fills_the_range_evenly():
    drawn = settings({"lr": log_uniform(1e-4, 1.0), "p": choice("a", "b")}, 64)
    decades = Counter(math.floor(math.log10(s["lr"])) for s in drawn)
    assert set(decades.values()) == {16} and len(decades) == 4
    assert Counter(s["p"] for s in drawn) == {"a": 32, "b": 32}


def test_ends_of_ranges():
    assert uniform(1, 3).at(0.0) == 1 and uniform(1, 3).at(0.75) == 2.5
    assert log_uniform(1e-4, 1).at(0.5) == pytest.approx(1e-2)
    assert [integers(1, 3).at(u) for u in (0, 0.34, 0.67, 0.999999)] == [1, 2, 3, 3]
    assert integers(1, 100, log=True).at(0.999999) == 100
    assert log_uniform(1e-3, 1e-1).grid(3) == pytest.approx([1e-3, 1e-2, 1e-1])
    assert integers(1, 4).grid(100) == [1, 2, 3, 4] and choice(True, None).grid(9) == [True, None]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: log_uniform(0, 1), "a low end above zero"),
        (lambda: uniform(2, 1), "from low to high"),
        (lambda: uniform(0, float("inf")), "two finite numbers"),
        (lambda: integers(1.5, 3), "give whole numbers"),
        (lambda: choice("a"), "at least two different values"),
        (lambda: choice((1, 2), [1, 2]), "at least two different values"),
        (lambda: settings({}, 3), "a space is a dict"),
        (lambda: settings({"lr": (1, 2)}, 3), "'lr' is .* give uniform"),
        (lambda: settings(SPACE, 0), "n=0: give the number of settings"),
        (lambda: settings(SPACE, 3, method="sobl"), "did you mean 'sobol'"),
        (lambda: run(bowl, SPACE, []), "no settings to run"),
        (lambda: run(lambda s: {"lr": 1.0}, SPACE, 1), "'lr' has the name of a hyper-parameter"),
        (lambda: run(lambda s: {"loss": "low"}, SPACE, 1), "'loss' is 'low'"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# Runs


def test_a_sweep_goes_on(tmp_path):
    path, ran = tmp_path / "deep" / "sweep.jsonl", []

    def evaluate(setting):
        ran.append(setting)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return bowl(setting)

    with pytest.raises(KeyboardInterrupt):
        run(evaluate, SPACE, 6, path=path)
    assert len(sweep.read(path)) == 2
    with open(path, "a") as file:
        file.write('{"lr": 0.01, "dro')  # what a kill in the middle of a write leaves
    rows = run(evaluate, SPACE, 6, path=path)
    assert len(ran) == 3 + 4  # the third setting again, and the three that were left
    assert [row["lr"] for row in rows] == [s["lr"] for s in settings(SPACE, 6)]
    assert sweep.read(path) == rows == run(evaluate, SPACE, 6, path=path)
    longer = run(evaluate, SPACE, 8, path=path)
    assert longer[:6] == rows and len(ran) == 9


def test_a_killed_process_goes_on(tmp_path):
    path = tmp_path / "sweep.jsonl"
    script = textwrap.dedent(
        f"""
        import os, signal
        from jaxfast.sweep import run, uniform
        def evaluate(setting):
            if os.path.exists({str(path)!r}) and len(open({str(path)!r}).readlines()) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return {{"loss": setting["x"]}}
        run(evaluate, {{"x": uniform(0, 1)}}, 5, path={str(path)!r})
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    before = sweep.read(path)
    assert len(before) == 2
    rows = run(lambda s: {"loss": s["x"]}, {"x": uniform(0, 1)}, 5, path=path)
    assert rows[:2] == before and len(rows) == 5


def test_a_diverged_run_is_a_row():
    def evaluate(setting):
        if setting["x"] > 0.5:
            raise FloatingPointError("the loss is nan at step 3")
        return {"loss": np.float32(setting["x"])}

    rows = run(evaluate, {"x": uniform(0, 1)}, 8)
    assert {("error" in row) for row in rows} == {True, False}
    assert all(row["error"] == "the loss is nan at step 3" for row in rows if row["x"] > 0.5)
    forest = Forest(rows, {"x": uniform(0, 1)}, "loss")
    assert max(forest.values) == pytest.approx(max(row["loss"] for row in rows if "loss" in row))
    json.dumps(rows)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "sweep.jsonl"
    run(lambda s: {"loss": 1.0}, {"x": uniform(0, 1)}, 2, path=path)
    with pytest.raises(ValueError, match="line 1 of .* has no 'lr'.*another path"):
        run(bowl, SPACE, 2, path=path)
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="line 1 of .* is no JSON"):
        sweep.read(path)


# Side by side


def learner(**options):
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 400), rng.integers(0, 15, 400)
    df = pd.DataFrame({"user": users, "item": items, "rating": 1.0 + (users + items) % 5})
    data = collab.from_frame(df, batch_size=16)
    return collab.learner(data, n_factors=4, y_range=(0, 5.5), quiet=True, devices=jax.devices()[:1], **options)


def test_side_by_side_equals_in_turn():
    given = [{"lr": 1e-2}, {"lr": 5e-2, "weight_decay": 0.3}, {"lr": 1e30}, {"lr": 2e-2, "pct_start": 0.5}]
    together = run_together(learner(), given, 3)
    learn = learner()
    for setting, row in zip(given, together, strict=True):
        learn = learner()
        options = {name: value for name, value in setting.items() if name != "lr"}
        if setting["lr"] == 1e30:
            assert "not finite" in row["error"]
            continue
        learn.fit_one_cycle(3, setting["lr"], **options)
        results = learn.validate()
        assert row["valid_loss"] == pytest.approx(results["loss"], rel=1e-5)
        assert row["mse"] == pytest.approx(results["mse"], rel=1e-5)
        assert {name: row[name] for name in setting} == setting


def test_side_by_side_goes_on_from_any_step_and_leaves_the_learner():
    learn = learner()
    learn.fit_one_cycle(1, 1e-2)
    before = jax.tree.map(np.asarray, learn.state.params)
    row = run_together(learn, [{"lr": 1e-2}], 2)[0]
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, learn.state.params))
    learn.fit_one_cycle(2, 1e-2)
    assert row["mse"] == pytest.approx(learn.validate()["mse"], rel=1e-5)


def test_what_cannot_run_together_is_named():
    with pytest.raises(ValueError, match="'dropout' changes the program"):
        run_together(learner(), [{"lr": 1e-2, "dropout": 0.1}], 1)
    with pytest.raises(ValueError, match="needs a learning rate"):
        run_together(learner(), [{"weight_decay": 0.1}], 1)
    with pytest.raises(ValueError, match="no settings"):
        run_together(learner(), [], 1)
    with pytest.raises(ValueError, match="stay on the device"):
        run_together(learner(resident=False), [{"lr": 1e-2}], 1)


# The forest


@pytest.fixture(scope="module")
def forest():
    return Forest(run(bowl, SPACE, 64), SPACE, "loss", trees=100)


def test_importance_finds_what_matters(forest):
    importance = forest.importance()
    assert list(importance)[0] == "lr" and set(importance) == set(SPACE)
    assert importance["lr"] > 10 * max(importance["dropout"], importance["layers"])
    assert forest.score > 0.7
    assert forest.best["loss"] == min(row["loss"] for row in forest.rows)


def test_partial_dependence_follows_the_bowl(forest):
    rates, means = forest.partial_dependence("lr")
    assert 10**-2.7 < rates[int(means.argmin())] < 10**-1.3
    assert means[0] > means.min() + 1
    values, flat = forest.partial_dependence("layers")
    assert values == [(200, 100), (400,), ()] and np.ptp(flat) < 0.1 * np.ptp(means)


def test_proposals_are_promising(forest):
    proposals = forest.propose(6)
    assert len(proposals) == 6 and all(10**-2.7 < p["lr"] < 10**-1.3 for p in proposals)
    assert np.mean([bowl(p)["loss"] for p in proposals]) < np.quantile(forest.values, 0.25)
    mean, deviation = forest.predict(proposals)
    assert (np.diff(mean - deviation) >= -1e-12).all()
    upside_down = Forest(
        [{**r, "loss": -r["loss"]} for r in forest.rows], SPACE, "loss", lower_is_better=False, trees=50
    )
    assert all(10**-2.7 < p["lr"] < 10**-1.3 for p in upside_down.propose(3))


def test_pictures(forest):
    assert [t.get_text() for t in forest.plot_importance().axes[0].get_yticklabels()][-1] == "lr"
    axes = forest.plot_dependence().axes
    assert [ax.get_xlabel() for ax in axes[:4]] == list(SPACE) and axes[0].get_xscale() == "log"
    assert len(forest.plot_dependence("lr", "width").axes) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"metric": "los"}, "no row has the metric 'los'; did you mean 'loss'"),
        ({"rows": slice(3)}, "at least 4 rows"),
        ({"space": {"lr": log_uniform(1e-2, 1e-1)}}, "row .*, 'lr': .* is not in"),
        ({"space": {"momentum": uniform(0, 1)}}, "row 0 has no 'momentum'"),
        ({"space": {"layers": choice((200, 100), (400,))}}, r"'layers': \[\] is not among"),
    ],
)
def test_a_bad_table_is_named(forest, change, message):
    rows = forest.rows[change.get("rows", slice(None))]
    with pytest.raises(ValueError, match=message):
        Forest(rows, change.get("space", SPACE), change.get("metric", "loss"), trees=5)
    with pytest.raises(ValueError, match="no hyper-parameter 'rate'"):
        forest.partial_dependence("rate")
    with pytest.raises(ValueError, match="different 'loss'"):
        Forest([{**row, "loss": 1.0} for row in forest.rows], SPACE, "loss")
