"""What is not finite: a fit goes back to its good state, and a model that computes NaN names no class."""

import json
import math

import jax
import numpy as np
import pandas as pd
import pyarrow
import pytest
from small import data, learner

import jaxfast.training.good as good
from jaxfast import __main__ as command
from jaxfast import collab, load_export, metrics, tabular, text, training
from jaxfast.messages import NoAnswer


def values(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.variables)]


def same(a, b):
    return all(map(np.array_equal, a, b))


def broken_from(step, rate=1e-3):
    """A schedule that is NaN from `step` of the fit on."""
    return lambda i: jax.numpy.where(i < step, rate, jax.numpy.nan)


def test_a_rate_that_is_far_too_high_leaves_a_learner_that_trains():
    learn = learner(optimizer="sgd")
    before = values(learn.state)
    with pytest.raises(FloatingPointError, match=r"learning rate [12]e\+30.*back at step 0, the start of the fit"):
        learn.fit(3, 1e30)
    assert same(values(learn.state), before) and int(learn.state.step) == 0
    assert learn.history.losses == [] and len(learn.history) == 0
    first = learn.validate()["loss"]
    learn.fit(1, 1e-3)
    assert np.isfinite(first) and learn.history.losses[-1] < learn.history.losses[0]


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_the_last_good_epoch_comes_back(monkeypatch, on_device, resident):
    monkeypatch.setattr(good, "_fits", lambda state: on_device)
    learn, plain = learner(resident=resident), learner(resident=resident)
    with pytest.raises(FloatingPointError, match=r"at step 19 of .* back at step 16, the end of its last good"):
        learn.fit(4, broken_from(19))
    plain.fit(2, 1e-3)
    assert same(values(learn.state), values(plain.state)) and int(learn.state.step) == 16
    assert learn.history.losses == plain.history.losses and len(learn.history.lrs) == 16
    assert [e["valid_loss"] for e in learn.history.epochs] == [e["valid_loss"] for e in plain.history.epochs]
    learn.fit(1, 1e-3)
    plain.fit(1, 1e-3)
    assert same(values(learn.state), values(plain.state)) and learn.history.losses == plain.history.losses


def test_a_split_state_comes_back_from_the_host(monkeypatch):
    monkeypatch.setattr(good, "_fits", lambda state: False)
    learn, plain = learner(shard=True), learner(shard=True)
    with pytest.raises(FloatingPointError, match="back at step 8"):
        learn.fit(2, broken_from(9))
    plain.fit(1, 1e-3)
    assert same(values(learn.state), values(plain.state))
    layouts = [[x.sharding for x in jax.tree.leaves(one.state)] for one in (learn, plain)]
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([1.0, 0.5, 4.9], 3),
        ([1.0, 0.5, 5.1], 2),
        ([1.0, math.nan, 2.0], 3),
        ([1.0, math.nan, math.inf], 1),
        ([math.nan, 30.0], 2),
        ([-1.0, -0.9], 2),  # a loss below zero: ten times the best would be better than the best
        ([-1.0, 8.5], 1),
        ([0.0, 0.1], 1),
    ],
)
def test_which_epochs_are_sane(losses, kept):
    learn = learner()
    history, keeper = training.History(), good.GoodState(learn.state, training.History())
    for i, loss in enumerate(losses, 1):
        history.add_steps(np.zeros(1), np.zeros((1, 3)), np.zeros(1))
        history.add_epoch({"valid_loss": loss}, 1.0, 1.0)
        keeper.end_epoch(learn.state.replace(step=jax.numpy.int32(i)), history, loss)
    state, history = keeper.restored(history)
    assert int(state.step) == len(history.losses) == len(history) == kept


def test_without_a_good_state_the_fit_stays_at_the_step_before():
    learn, plain = learner(keep_good=False, resident=False), learner(resident=False)
    with pytest.raises(FloatingPointError, match="at step 11 of .* the state before that step is kept"):
        learn.fit(2, broken_from(11))
    assert int(learn.state.step) == 11 == len(learn.history.losses) and np.isfinite(learn.history.losses).all()
    program = plain.task.training_program(plain.trainable, plain.programs)
    rows = training.hyper_rows(11, [1e-3] * 3, 0.95, 0.01)
    for piece in training.run(plain.state, program.chunk, plain.task.source, rows):
        state = piece.state
    assert same(values(state), values(learn.state))


@pytest.mark.parametrize("free, fits", [(4.1, True), (3.9, False)])
def test_a_second_state_lies_where_it_fits(monkeypatch, free, fits):
    """On the device if it takes at most a quarter of what is free there."""
    state = learner().state
    size = sum(x.nbytes for x in jax.tree.leaves(state.replace(key=jax.random.key_data(state.key))))
    stats, spare = {"bytes_limit": 10**9 + free * size, "bytes_in_use": 10**9}, good.spare_memory
    monkeypatch.setattr(good, "spare_memory", lambda _: spare(stats))
    assert good.GoodState(state, training.History()).on_device is fits
    monkeypatch.undo()
    assert good.GoodState(state, training.History()).on_device  # a CPU


# A model whose parameters are not finite


def spoil(learn):
    learn.state = learn.state.replace(params=jax.tree.map(lambda x: x * np.float32("nan"), learn.state.params))
    return learn


def table(n=80):
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"a": rng.normal(size=n), "b": rng.choice(list("xyz"), n)})
    return df.assign(y=np.where(df.a > 0, "yes", "no"), z=df.a * 2)


def texts():
    words = [f"w{i}" for i in range(20)]
    rng = np.random.default_rng(0)
    return pd.DataFrame({"text": [" ".join(rng.choice(words, 30)) for _ in range(40)], "label": list("ab") * 20})


@pytest.fixture(scope="module")
def image():
    return spoil(learner())


def test_no_class_for_nan(image):
    item = image.data.valid[0]
    for ask in (image.predict, image.heatmap):
        with pytest.raises(NoAnswer, match="the model answers nan: its parameters are not finite"):
            ask(item)
    for ask in (image.interpret, image.show_results):
        with pytest.raises(NoAnswer):
            ask()
    assert image.validate()["accuracy"] == 0 and math.isnan(image.validate()["loss"])


def test_no_answer_for_nan_in_other_data():
    ratings = pd.DataFrame({"user": [1, 2, 3, 4] * 20, "item": [1, 2, 3, 4, 5] * 16, "rating": [1.0, 5.0] * 40})
    rates = spoil(collab.learner(collab.from_frame(ratings, batch_size=16), quiet=True))
    config = {"emb_size": 8, "hidden_size": 8, "n_layers": 1}
    frame = texts()
    writes = spoil(
        text.language_learner(text.from_frame(frame[["text"]], batch_size=8, bptt=8), config=config, quiet=True)
    )
    sorts = spoil(
        text.classifier_learner(text.from_frame(frame, label="label", batch_size=8), config=config, quiet=True)
    )
    numbers = spoil(
        tabular.learner(tabular.from_frame(table()[["a", "b", "z"]], target="z", batch_size=16), quiet=True)
    )
    for ask in (
        lambda: rates.predict((1, 1)),
        lambda: rates.recommend(1, include_seen=True, n=2),
        lambda: writes.predict("w1", 3),
        lambda: writes.predict("w1", 3, beams=2),
        lambda: sorts.predict("w1"),
        lambda: numbers.predict(table().iloc[0].to_dict()),
    ):
        with pytest.raises(NoAnswer):
            ask()


@pytest.mark.parametrize("name", ["accuracy", "top_5_accuracy", "balanced_accuracy", "f1", "error_rate"])
def test_nan_is_never_right(name):
    metric = next(m for m in metrics.METRICS.values() if m.name == name)
    logits, labels = np.full((4, 6), np.nan, np.float32), np.array([0, 0, 1, 2])
    value = metric.compute(metric.update(jax.numpy.asarray(logits), jax.numpy.asarray(labels), np.ones(4, bool)))
    assert value == (1.0 if name == "error_rate" else 0.0)


def test_nan_is_never_right_for_several_labels():
    metric = metrics.METRICS["accuracy_multi"]
    outputs, target = jax.numpy.array([[np.nan, -3.0], [3.0, 3.0]]), jax.numpy.array([[0.0, 0.0], [1.0, 0.0]])
    assert metric.compute(metric.update(outputs, target, np.ones(2, bool))) == 0.5


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
@pytest.mark.parametrize("target", ["y", "z"])
def test_rows_without_an_answer_are_null_in_tables(library, target):
    df = table()
    columns = ["a", "b", target]
    learn = tabular.learner(tabular.from_frame(df[columns], target=target, batch_size=16), quiet=True)
    # one category's embedding is not finite: the rows that have it have no answer
    params = jax.tree.map(np.array, jax.device_get(learn.state.params))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    (embedding,) = [x for path, x in leaves if x.ndim == 2 and len(x) == 4 and "embed" in str(path)]
    embedding[1 + learn.data.codec.embedded[0].values.index("y")] = np.nan
    learn.state = learn.state.replace(params=params)
    frame = df[["a", "b"]]
    if library == "pyarrow":
        frame = pyarrow.Table.from_pandas(frame)
    count = int((df.b == "y").sum())
    with pytest.warns(RuntimeWarning, match=f"{count} of {len(df)} rows have no answer"):
        found = learn.predict_frame(frame, probabilities=target == "y")
    names = found.column_names if library == "pyarrow" else found.columns
    for name in [name for name in names if name.startswith(("prediction", "probability"))]:
        column = found[name]
        empty = np.asarray(column.is_null()) if library == "pyarrow" else column.isna().to_numpy()
        assert (empty == (df.b == "y").to_numpy()).all(), name


def test_the_command_leaves_answers_empty(tmp_path, capsys):
    df = table()
    learn = tabular.learner(tabular.from_frame(df[["a", "b", "y"]], target="y", batch_size=16), quiet=True)
    learn.export(tmp_path / "good.jaxfast")
    spoil(learn).export(tmp_path / "bad.jaxfast")
    df.to_csv(tmp_path / "rows.csv")
    files = [str(tmp_path / name) for name in ("good.jaxfast", "bad.jaxfast", "rows.csv")]
    assert command.main(["predict", files[0], files[2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["label"] in ("yes", "no")
    assert command.main(["predict", files[1], files[2], "--json"]) == 1
    out, err = capsys.readouterr()
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    rows = [json.loads(line, parse_constant=refuse) for line in out.splitlines()]
    assert rows[3] == {"file": files[2], "row": 3, "label": None, "index": None, "probabilities": None}
    assert len(rows) == len(df) and "80 of 80 rows have no answer" in err
    assert command.main(["predict", files[1], files[2]]) == 1
    out, err = capsys.readouterr()
    assert out.count("null") == 2 * len(df) and "80 of 80 rows have no answer" in err
    with pytest.raises(NoAnswer):
        load_export(files[1]).predict(df.iloc[0].to_dict())


def test_an_image_that_gives_nan_is_null(tmp_path, capsys, image):
    from PIL import Image

    image.export(tmp_path / "bad.jaxfast")
    Image.fromarray(data().valid[0]["image"]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    status = command.main(["predict", *(str(tmp_path / name) for name in ("bad.jaxfast", "a.png", "b.png")), "--json"])
    out, err = capsys.readouterr()
    assert status == 1 and [json.loads(line)["label"] for line in out.splitlines()] == [None]
    assert "b.png" in err and "1 of 1 rows have no answer" in err
