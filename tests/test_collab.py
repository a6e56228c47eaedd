"""Collaborative filtering: fastai's model, the unseen, recommendations, ranking metrics, bad input, MovieLens."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxfast import collab
from jaxfast.data.ratings import RatingsCodec
from jaxfast.interpret.recommend import ndcg_at_k, nearest_rows, recall_at_k, top_k
from jaxfast.kernels.embedding import embed
from jaxfast.models.collab import EmbeddingDotBias, EmbeddingNN, embedding_init


def frame(users=40, items=30, seed=0):
    """Every user's rating of every item from two hidden tastes, 1 to 5, of which a tenth is left out."""
    rng = np.random.default_rng(seed)
    tastes, traits = rng.normal(size=(users, 2)), rng.normal(size=(items, 2))
    scores = np.clip(np.round(3 + tastes @ traits.T + rng.normal(size=items)), 1, 5)
    rows = [(f"u{u:02}", 100 + i, scores[u, i]) for u in range(users) for i in range(items) if rng.random() < 0.9]
    return pd.DataFrame(rows, columns=["user", "item", "rating"]).sample(frac=1, random_state=seed)


@pytest.fixture(scope="module")
def learned():
    learn = collab.learner(collab.from_frame(frame(), batch_size=32), n_factors=8, y_range=(0, 5.5), quiet=True)
    learn.fit_one_cycle(30, 2e-2)
    return learn


# The kernel


def test_embed_is_indexing_with_its_gradient():
    rng = np.random.default_rng(0)
    table, weights = jnp.array(rng.normal(size=(7, 5))), jnp.array(rng.normal(size=(3, 4, 5)))
    index = jnp.array(rng.integers(0, 7, (3, 4)))  # some rows twice
    value, gradient = jax.value_and_grad(lambda t: (embed(t, index) * weights).sum())(table)
    expected = jax.value_and_grad(lambda t: (t[index] * weights).sum())(table)
    np.testing.assert_array_equal(value, expected[0])
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)
    batched = jax.vmap(jax.grad(lambda t: (embed(t, index) * weights).sum()))(jnp.stack([table, 2 * table]))
    np.testing.assert_allclose(batched[1], expected[1], rtol=1e-6)


# The models


def test_dot_bias_is_fastais_formula():
    module = EmbeddingDotBias(4, 3, 2, (0.0, 5.5))
    user, item = jnp.array([0, 3, 2]), jnp.array([2, 0, 0])
    params = module.init(jax.random.key(0), user, item)["params"]
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "user_factors": (4, 2), "item_factors": (3, 2), "user_bias": (4, 1), "item_bias": (3, 1),
    }  # fmt: skip
    p = {name: np.asarray(leaf) * 100 for name, leaf in params.items()}
    dots = [p["user_factors"][u] @ p["item_factors"][i] + p["user_bias"][u, 0] + p["item_bias"][i, 0]
            for u, i in zip(user, item, strict=True)]  # fmt: skip
    for train in (False, True):
        got = module.apply({"params": p}, user, item, train=train)
        np.testing.assert_allclose(got, 5.5 / (1 + np.exp(-np.array(dots))), rtol=1e-5)


@pytest.mark.parametrize("module", [EmbeddingDotBias(4, 3, 2, (0.0, 5.5)), EmbeddingNN(4, 3, (6,))])
def test_the_unseen_get_the_mean(module):
    variables = module.init(jax.random.key(0), jnp.array([0]), jnp.array([0]))
    # with the mean in every row of a table, row 0 is the mean
    flat = {name: jnp.broadcast_to(t.mean(0), t.shape) if name.startswith(("user", "item")) else t
            for name, t in variables["params"].items()}  # fmt: skip
    for unseen in (("user",), ("item",), ("user", "item")):
        numbers = [jnp.array([0 if name not in unseen else n]) for name, n in (("user", 4), ("item", 3))]
        params = {name: flat[name] if name.startswith(unseen) else t for name, t in variables["params"].items()}
        expected = module.apply({**variables, "params": params}, jnp.array([0]), jnp.array([0]))
        np.testing.assert_allclose(module.apply(variables, *numbers), expected, rtol=1e-5)


def test_initial_values_are_fastais():
    values = np.asarray(embedding_init(jax.random.key(0), (400, 500)))
    assert np.abs(values).max() < 0.02
    # the remainder by 2 of a normal, by numbers drawn elsewhere
    assert values.std() == pytest.approx(
        0.01 * np.fmod(np.random.default_rng(0).normal(size=200_000), 2).std(), rel=0.01
    )


def test_everything_decays():
    learn = collab.learner(collab.from_frame(frame(), batch_size=32), n_factors=4, quiet=True)
    before = jax.tree.map(np.asarray, learn.state.params)
    row = {"lr": jnp.array([0.5]), "momentum": 0.9, "weight_decay": 0.1}
    part = learn.trainable
    transformation = learn.optimizer(row, labels=lambda _: part.labels)
    zeros = jax.tree.map(jnp.zeros_like, learn.state.params)
    updates, _ = transformation.update(zeros, learn.state.opt_state, learn.state.params)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -0.05 * before[name], rtol=1e-5)


# Learning


def test_it_learns_the_tastes(learned):
    spread = float(np.var(learned.data.valid.target))
    assert learned.validate()["mse"] < 0.35 * spread
    assert learned.history.epochs[-1]["mse"] == pytest.approx(learned.validate()["mse"])


def test_predict_says_what_the_model_says(learned):
    data = learned.data
    predictions, targets = learned.get_preds()
    for i in (0, 5):
        example = data.valid[i]
        names = data.codec.users[int(example["user"])], data.codec.items[int(example["item"])]
        for item in (
            names,
            dict(zip(("user", "item"), names, strict=True)),
            example,
            data.frame.to_native().iloc[data.valid.index[i]],
        ):
            assert learned.predict(item).value == pytest.approx(float(predictions[i]), rel=1e-5)
    assert 0 < learned.predict(("a stranger", 7)).value < 5.5
    assert list(learned.show_results(4)) == ["user", "item", "rating", "prediction"]


def test_recommendations_leave_out_what_was_seen(learned):
    data, user = learned.data, "u03"
    seen = {data.codec.items[i] for i in data.train.item[data.train.user == data.codec.user_number(user)]}
    left = len(data.codec.items) - len(seen)
    found = learned.recommend(user, left)
    assert not seen.intersection(item for item, _ in found)
    values = [value for _, value in found]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(learned.predict((user, found[0][0])).value, rel=1e-5)
    everything = learned.recommend(user, 30, include_seen=True)
    assert {item for item, _ in everything} == set(data.codec.items)
    assert len(learned.recommend("a stranger", 5)) == 5
    with pytest.raises(ValueError, match="items left to recommend"):
        learned.recommend(user, left + 1)


def test_what_it_learnt_of_items(learned):
    biases = learned.item_bias()
    assert [value for _, value in biases] == sorted((value for _, value in biases), reverse=True)
    means = frame().groupby("item").rating.mean()
    assert np.corrcoef([means[item] for item, _ in biases], [value for _, value in biases])[0, 1] > 0.8
    factors = learned.item_factors()
    assert factors.vectors.shape == (30, 8) and factors.values == learned.data.codec.items
    nearest = learned.nearest_items(104, 3)
    a, b = factors[104], factors[nearest[0][0]]
    assert nearest[0][1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-5)
    assert learned.plot_items(5).axes[0].get_title() == "item"
    assert len(learned.user_bias()) == 40


def test_rank_metrics_against_a_plain_loop(learned):
    data, k = learned.data, 3
    recalls, gains = [], []
    for user in range(len(data.codec.users)):
        mine, good = data.train.user == user, (data.valid.user == user) & (data.valid.target >= 4)
        wanted = set(data.valid.item[good])
        if not wanted:
            continue
        seen = set(data.train.item[mine])
        scores = [(learned.predict((data.codec.users[user], item)).value, i) for i, item in enumerate(data.codec.items)]
        best = [i for _, i in sorted(scores, key=lambda s: -s[0]) if i not in seen][:k]
        recalls.append(len(wanted.intersection(best)) / len(wanted))
        ideal = sum(1 / np.log2(r + 2) for r in range(min(k, len(wanted))))
        gains.append(sum(1 / np.log2(r + 2) for r, i in enumerate(best) if i in wanted) / ideal)
    got = learned.rank_metrics(k=k, relevant=4)
    assert got == pytest.approx({"recall@3": np.mean(recalls), "ndcg@3": np.mean(gains)}, rel=1e-6)
    with pytest.raises(ValueError, match="no rating of 6 or higher"):
        learned.rank_metrics(relevant=6)


def test_the_network():
    data = collab.from_frame(frame(), batch_size=32)
    learn = collab.learner(
        data, use_nn=True, layers=(16,), dropout=0.1, y_range=(0, 5.5), weight_decay=0.01, quiet=True
    )
    learn.fit_one_cycle(10, 1e-2)
    assert learn.validate()["mse"] < 0.6 * np.var(data.valid.target)
    assert len(learn.recommend("u00", 2)) == 2
    with pytest.raises(ValueError, match="has no biases"):
        learn.item_bias()


# Arrays


def test_ranking_functions_against_worked_numbers():
    scores = np.array([[0.3, 0.9, 0.5, 0.5], [1.0, 0.0, 2.0, 3.0]])
    seen = np.array([[False, True, False, False], [False, False, False, True]])
    ranked = top_k(scores, 2, seen)
    assert ranked.tolist() == [[2, 3], [2, 0]]
    relevant = np.array([[True, False, False, True], [False, False, True, False]])
    assert recall_at_k(ranked, relevant) == pytest.approx((1 / 2 + 1) / 2)
    first = (1 / np.log2(3)) / (1 + 1 / np.log2(3))
    assert ndcg_at_k(ranked, relevant) == pytest.approx((first + 1) / 2)
    assert np.isnan(recall_at_k(ranked, np.zeros((2, 4), bool))) and np.isnan(ndcg_at_k(ranked, np.zeros((2, 4))))
    with pytest.raises(ValueError, match="k=5: give a number from 1 to the 4 items"):
        top_k(scores, 5)
    rows, cosines = nearest_rows(np.array([[1.0, 0], [0, 1], [2, 2], [-1, 0]]), 0, 2)
    assert rows.tolist() == [2, 1] and cosines == pytest.approx([2**-0.5, 0])


def test_ndcg_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, gains = rng.random((6, 12)), rng.integers(0, 4, (6, 12))
    assert ndcg_at_k(top_k(scores, 5), gains) == pytest.approx(metrics.ndcg_score(gains, scores, k=5))


# Data


def test_numbers_come_from_training_rows_alone():
    df = frame().reset_index(drop=True)
    df.loc[len(df)] = ["only here", 999, 4.0]
    data = collab.from_frame(df, valid=[len(df) - 1, 0], batch_size=8)
    assert "only here" not in data.codec.users and 999 not in data.codec.items
    assert data.valid.user[1] == len(data.codec.users) and data.valid.item[1] == len(data.codec.items)
    assert "1 of them of unseen" in repr(data)
    for i in (3, 70):
        row = df.iloc[data.train.index[i]]
        assert data.codec.users[data.train.user[i]] == row.user and data.codec.items[data.train.item[i]] == row["item"]
        assert data.train.target[i] == row.rating


def test_the_same_from_a_dict_and_other_columns():
    df = frame()
    renamed = {"who": df.user.tolist(), "what": df.item.tolist(), "stars": df.rating.tolist()}
    data = collab.from_frame(df, batch_size=16)
    other = collab.from_frame(renamed, user="who", item="what", rating="stars", batch_size=16)
    np.testing.assert_array_equal(other.train.item, data.train.item)
    np.testing.assert_array_equal(other.valid.target, data.valid.target)
    mask = np.zeros(len(df), bool)
    mask[data.valid.index] = True
    by_column = collab.from_frame(df.assign(held=mask), valid="held", batch_size=16)
    np.testing.assert_array_equal(by_column.train.user, data.train.user)


def test_the_codec_goes_through_json(learned):
    codec = learned.data.codec
    again = RatingsCodec.from_json(json.loads(json.dumps(codec.to_json())))
    assert again == codec
    pair = ("u05", 107)
    assert all(again.encode(pair)[name] == codec.encode(pair)[name] for name in ("user", "item"))
    assert codec.decode(np.float32(3.5)).value == 3.5


def wrong(change):
    df = frame()
    df = df.astype({"rating": object}) if change.get("as_object") else df
    for column, value in change["cells"].items():
        df.loc[df.index[3], column] = value
    return df


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda: frame().iloc[:0], {}, "no rows"),
        (frame, {"item": "itm"}, "item= 'itm' not in the table.*did you mean 'item'"),
        (frame, {"user": "item"}, "must be three columns"),
        (frame, {"batch_size": 0}, "batch_size=0: give a whole number"),
        (frame, {"batch_size": 5000}, "is more than the .* training ratings"),
        (frame, {"valid": "held"}, "valid='held': give a fraction"),
        (frame, {"valid": "rating"}, "must be a column of booleans"),
        (frame, {"valid": 1.5}, "between 0 and 1"),
        (lambda: wrong({"cells": {"rating": np.nan}}), {}, "'rating' is empty in row 3"),
        (lambda: wrong({"cells": {"rating": np.inf}}), {}, "'rating' is infinite in row 3"),
        (lambda: wrong({"cells": {"rating": "good"}, "as_object": True}), {}, "'rating' holds .* numbers are expected"),
        (lambda: wrong({"cells": {"user": None}}), {}, "'user' is empty in row 3"),
        (
            lambda: frame().assign(item=frame().item + 0.5),
            {},
            "'item' holds numbers .*: names are whole numbers or text",
        ),
        (lambda: 3, {}, "is not a table"),
    ],
)
def test_bad_ratings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message) as error:
        collab.from_frame(make(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"y_range": (1.5, 5)}, r"y_range=\(1.5, 5\) must hold the ratings, 1 to 5"),
        ({"y_range": (6, 0)}, "must hold the ratings"),
        ({"n_factors": 0}, "n_factors=0"),
        ({"layers": (10,)}, "give use_nn=True"),
        ({"use_nn": True, "dropout": 1.0}, "a dropout of 1.0"),
        ({"metrics": ["mze"]}, "unknown metric"),
    ],
)
def test_bad_learners_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        collab.learner(collab.from_frame(frame(), batch_size=32), quiet=True, **options)


@pytest.mark.parametrize(
    "item, message",
    [
        (("u01",), "give .user, item. or a mapping"),
        ({"user": "u01"}, "takes 'item'"),
        ((7, 107), "user is 7 of type int: the training rows have text"),
        (("u01", "107"), "item is '107' of type str: the training rows have whole numbers"),
        (("u01", float("nan")), "item is nan of type float"),
    ],
)
def test_bad_pairs_are_named(learned, item, message):
    with pytest.raises(ValueError, match=message):
        learned.predict(item)
    with pytest.raises(ValueError, match="item 5 is not among the 30"):
        learned.nearest_items(5)


@pytest.mark.slow
def test_movielens_reaches_the_courses_number(outside_data):
    with zipfile.ZipFile(outside_data("ml-100k.zip")) as archive:
        ratings = pd.read_csv(archive.open("ml-100k/ml-100k.inter"), sep="\t")
    ratings.columns = [name.partition(":")[0] for name in ratings.columns]
    data = collab.from_frame(ratings, user="user_id", item="item_id", valid=0.1, seed=0)
    learn = collab.learner(data, n_factors=40, y_range=(0, 5.5), quiet=True)
    learn.fit_one_cycle(5, 5e-3)
    assert learn.validate()["mse"] < 0.80
