"""The network over tables, beside torch's layers; its learner, predictions as columns, embeddings; Adult."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

from jaxfast import tabular
from jaxfast.models.layers import BatchNorm
from jaxfast.models.tabular import TabularNet, emb_sz

DEVICE = {"devices": jax.devices()[:1], "quiet": True}
SMALL = {"layers": (16, 8), **DEVICE}


def table(n=400, seed=0):
    """The class is that the town is one of two and x is above a bound of the town's; some cells are empty."""
    rng = np.random.default_rng(seed)
    town = np.array(["Aa", "Bo", "Cy", "Du"], object)[rng.integers(0, 4, n)]
    x, noise = rng.normal(size=n), rng.normal(size=n)
    rich = np.isin(town, ["Aa", "Bo"]) & (x > -0.5)
    price = np.exp(0.5 * x + (town == "Aa"))
    frame = pd.DataFrame({"town": town, "x": x, "noise": noise, "rich": np.where(rich, "yes", "no"), "price": price})
    frame.loc[::11, "noise"] = np.nan
    return frame


def make(**options):
    target = options.get("target", "rich")
    drop = [name for name in ("rich", "price") if name not in np.atleast_1d(target)]
    return tabular.from_frame(table().drop(columns=drop), **{"target": target, "batch_size": 32, **options})


@pytest.fixture(scope="module")
def trained():
    learn = tabular.learner(make(), **SMALL)
    learn.fit_one_cycle(8, 2e-2)
    return learn


def test_embedding_widths_are_fastais():
    # numbers of fastai's emb_sz_rule
    assert [emb_sz(n) for n in (2, 3, 10, 17, 43, 1000, 4044, 10**6)] == [2, 3, 6, 8, 13, 77, 167, 600]


def test_the_network_equals_torchs():
    sizes, rng = ((5, 3), (9, 4)), np.random.default_rng(0)
    codes = np.stack([rng.integers(0, n, 32) for n, _ in sizes], 1).astype(np.int32)
    numbers = rng.normal(3, 2, (32, 2)).astype(np.float32)
    net = TabularNet(sizes, 3, layers=(8, 6), y_range=(-1.0, 2.0))
    variables = jax.jit(net.init)(jax.random.key(0), codes, numbers)
    params = variables["params"]
    assert params["embedding"].shape == (14, 4)
    assert abs(params["embedding"]).max() <= 0.02 and 0.005 < params["embedding"].std() < 0.012
    bound = 1 / np.sqrt(9)
    assert 0.9 * bound < abs(params["dense0"]["kernel"]).max() <= bound and "bias" not in params["dense0"]

    class Torch(torch.nn.Module):  # fastai's TabularModel, LinBnDrop with lin_first
        def __init__(self):
            super().__init__()
            self.embeds = torch.nn.ModuleList([torch.nn.Embedding(n, d) for n, d in sizes])
            self.bn = torch.nn.BatchNorm1d(2)
            layer = lambda a, b: [torch.nn.Linear(a, b, bias=False), torch.nn.ReLU(), torch.nn.BatchNorm1d(b)]
            self.layers = torch.nn.Sequential(*layer(9, 8), *layer(8, 6), torch.nn.Linear(6, 3))

        def forward(self, codes, numbers):
            rows = [embed(codes[:, i]) for i, embed in enumerate(self.embeds)]
            return torch.sigmoid(self.layers(torch.cat([*rows, self.bn(numbers)], 1))) * 3 - 1

    model, set_ = Torch(), lambda p, value: p.data.copy_(torch.tensor(np.array(value)))
    for i, embed in enumerate(model.embeds):
        set_(embed.weight, net.vectors(params, i))
    for place, name in ((0, "dense0"), (3, "dense1"), (6, "head")):
        set_(model.layers[place].weight, params[name]["kernel"].T)
    set_(model.layers[6].bias, params["head"]["bias"])

    inputs = torch.tensor(codes).long(), torch.tensor(numbers)
    want = model(*inputs)
    want.square().sum().backward()

    def run(params):
        out, state = net.apply({**variables, "params": params}, codes, numbers, train=True, mutable=["batch_stats"])
        return jnp.square(out).sum(), (out, state)

    grads, (got, state) = jax.jit(jax.grad(run, has_aux=True))(params)
    np.testing.assert_allclose(got, want.detach(), atol=2e-5)
    for i, embed in enumerate(model.embeds):
        np.testing.assert_allclose(net.vectors(grads, i), embed.weight.grad, atol=2e-4)
    np.testing.assert_allclose(grads["dense0"]["kernel"].T, model.layers[0].weight.grad, atol=2e-4)
    np.testing.assert_allclose(state["batch_stats"]["norm_numbers"]["var"], model.bn.running_var, rtol=1e-5)
    model.eval()
    np.testing.assert_allclose(net.apply({**variables, **state}, codes, numbers), model(*inputs).detach(), atol=2e-5)


def test_dropouts_act_where_they_are_named():
    rng = np.random.default_rng(0)
    codes, numbers = rng.integers(0, 4, (16, 2)), rng.normal(size=(16, 1))
    sizes, layers = ((4, 3), (4, 3)), (8, 6)
    variables = TabularNet(sizes, 1, layers).init(jax.random.key(0), codes, numbers)

    def differs(**dropouts):
        net = TabularNet(sizes, 1, layers, **dropouts)
        options = {"train": True, "mutable": ["batch_stats"]}
        outs = [net.apply(variables, codes, numbers, rngs={"dropout": jax.random.key(i)}, **options)[0] for i in (1, 2)]
        return not np.allclose(*outs, rtol=1e-3)

    assert [differs(), differs(embed_p=0.5), differs(ps=(0.0, 0.5)), differs(ps=0.5)] == [False, True, True, True]


def test_it_learns_and_predicts_columns(trained):
    assert trained.validate()["accuracy"] > 0.85
    df, data = table().drop(columns="price"), trained.data
    made = trained.predict_frame(df, probabilities=True)
    assert list(made) == [*df, "prediction", "probability_no", "probability_yes"]
    assert made.index.equals(df.index) and "prediction" not in df
    probabilities = made[["probability_no", "probability_yes"]].to_numpy()
    np.testing.assert_allclose(probabilities[data.valid.index], trained.get_preds()[0], atol=1e-5)
    accuracy = (made["prediction"] == df["rich"])[data.valid.index].mean()
    assert accuracy == pytest.approx(trained.validate()["accuracy"], abs=1e-6)
    for i in (0, 399):
        one = trained.predict(df.iloc[i])
        assert one.label == made["prediction"][i]
        np.testing.assert_allclose(one.probabilities, probabilities[i], atol=1e-5)
    shuffled = df.drop(columns="rich").sample(frac=1, random_state=1)
    assert trained.predict_frame(shuffled)["prediction"].sort_index().equals(made["prediction"])


def test_unseen_and_empty_cells_are_predicted(trained):
    assert trained.predict({"town": "Zz", "x": 0.1, "noise": None}).label in ("no", "yes")
    assert len(trained.predict_frame({"town": [None, "Aa"], "x": [1.0, None], "noise": [0.0, 1.0]})) == 2
    for wrong, message in (
        ({"town": "Aa"}, "'x', 'noise' not in the table"),
        ({}, "needs the columns"),
        ([1], "not a table"),
    ):
        with pytest.raises(ValueError, match=message):
            trained.predict(wrong)
    with pytest.raises(ValueError, match="nothing to predict"):
        trained.predict_frame(table().iloc[:0])


def test_embeddings_as_a_table_and_a_picture(trained):
    town = trained.embeddings("town")
    assert town.values == ("#na#", "Aa", "Bo", "Cy", "Du") and town.vectors.shape == (5, emb_sz(5))
    frame = town.table()
    np.testing.assert_array_equal(frame.loc["Cy"], town["Cy"])
    assert frame.index.name == "town" and list(frame)[0] == "town_0"
    centred = town.vectors - town.vectors.mean(0)
    spread = np.linalg.eigvalsh(centred.T @ centred)[::-1][:2]
    np.testing.assert_allclose((town.project() ** 2).sum(0), spread, rtol=1e-4)
    names = [text.get_text() for text in town.plot().axes[0].texts]
    assert sorted(names) == sorted(town.values)
    assert trained.embeddings("noise_na").values == ("#na#", False, True)
    with pytest.raises(ValueError, match="did you mean 'town'"):
        trained.embeddings("twon")
    with pytest.raises(KeyError, match="no category 'Ee'"):
        town["Ee"]


def test_features_serve_a_random_forest(trained):
    from sklearn.ensemble import RandomForestClassifier

    df = table()
    features = trained.featurize(df)
    assert list(features)[:3] == ["x", "noise", "town_0"] and len(features) == 400
    row = features.iloc[7]
    town = trained.embeddings("town")[df["town"][7]]
    np.testing.assert_allclose(row[[f"town_{i}" for i in range(len(town))]].astype(float), town, rtol=1e-6)
    train, valid = trained.data.train.index, trained.data.valid.index
    forest = RandomForestClassifier(20, random_state=0).fit(features.iloc[train], df["rich"][train])
    assert forest.score(features.iloc[valid], df["rich"][valid]) > 0.9


def test_a_logarithm_is_scored_in_units():
    data = make(target="price", log=True)
    learn = tabular.learner(data, y_range=(0.05, 50.0), metrics=["rmspe", "rmse", "mae"], **SMALL)
    learn.fit_one_cycle(6, 1e-2)
    scores = learn.validate()
    truth = table()["price"].to_numpy()[data.valid.index]
    said = learn.predict_frame(table())["prediction"].to_numpy()[data.valid.index]
    error = said - truth
    assert scores["rmspe"] == pytest.approx(np.sqrt(np.mean((error / truth) ** 2)), rel=1e-3) and scores["rmspe"] < 0.5
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3)
    assert scores["mae"] == pytest.approx(np.mean(abs(error)), rel=1e-3)
    assert scores["loss"] == pytest.approx(np.mean((np.log(said) - np.log(truth)) ** 2), rel=1e-3)
    assert 0.05 < said.min() and said.max() < 50
    assert learn.predict(table().iloc[0]).value == pytest.approx(
        learn.predict_frame(table())["prediction"][0], rel=1e-4
    )


def test_defaults_follow_the_target():
    for options, metric in (
        ({}, "accuracy"),
        ({"target": "price"}, "rmse"),
        ({"target": "price", "log": True}, "rmspe"),
    ):
        learn = tabular.learner(make(**options), layers=(4,), **DEVICE)
        assert [m.name for m in learn.metrics] == [metric]


def test_several_outputs():
    data = make(target=["price", "x"], standardize=True)
    learn = tabular.learner(data, **SMALL)
    learn.fit_one_cycle(1, 1e-2)
    made = learn.predict_frame(table())
    assert list(made)[-2:] == ["prediction_price", "prediction_x"]
    assert learn.predict(table().iloc[0]).value == pytest.approx(made.iloc[0, -2:].to_numpy(float), rel=1e-4)
    questions = table().drop(columns=["rich", "price"]).assign(a=lambda d: d["x"] > 0, b=lambda d: d["town"] == "Aa")
    learn = tabular.learner(tabular.from_frame(questions, target=["a", "b"], batch_size=32), **SMALL)
    learn.fit_one_cycle(5, 2e-2)
    assert learn.validate()["accuracy_multi"] > 0.85
    made = learn.predict_frame(questions, probabilities=True)
    assert (made["prediction_a"] == (made["probability_a"] > 0.5)).all()


def test_only_numbers_or_only_categories():
    for options in ({"categorical": [], "continuous": ["x", "noise"]}, {"categorical": ["town"], "continuous": []}):
        learn = tabular.learner(make(**options), **SMALL)
        learn.fit_one_cycle(1, 1e-2)
        assert np.isfinite(learn.history.losses).all() and len(learn.predict_frame(table())) == 400


def test_pictures_and_rows():
    data = make()
    assert list(data.show_batch(4)) == ["town", "x", "noise", "rich"] and len(data.show_batch(4)) == 4
    learn = tabular.learner(data, layers=(4,), **DEVICE)
    assert list(learn.show_results(5)) == ["target", "prediction"]
    assert "320 training and 80 validation rows" in repr(data) and "1 categorical columns (town)" in repr(data)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({}, {"ps": (0.1,)}, "1 dropouts for 2 layers"),
        ({}, {"embed_p": 1.0}, "dropout of 1.0"),
        ({}, {"emb_szs": {"twon": 3}}, "did you mean 'town'"),
        ({}, {"emb_szs": {"town": 0}}, "give a width from 1 on"),
        ({}, {"y_range": (0, 1)}, "y_range bounds numbers"),
        ({"target": "price"}, {"y_range": (1, 1)}, "lowest, highest"),
        ({"target": "price", "log": True}, {"y_range": (0, 1)}, "above zero"),
        ({}, {"metrics": ["rsme"]}, "unknown metric 'rsme'"),
    ],
)
def test_bad_settings_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        tabular.learner(make(**data), **DEVICE, **options)


def test_eight_devices_train_alike():
    data = make(batch_size=64)
    learn = tabular.learner(data, layers=(16, 8), quiet=True)
    assert isinstance(learn.module, TabularNet) and learn.task.norm_groups == BatchNorm.groups * 8
    learn.fit_one_cycle(4, 2e-2)
    assert learn.validate()["accuracy"] > 0.7


def test_adult(outside_data):
    """One run of the course's setting; the experiment reports the mean of three."""
    data = tabular.from_file(outside_data("adult.csv.gz"), target="income-per-year", max_card=128, seed=0)
    learn = tabular.learner(data, **DEVICE)
    learn.fit_one_cycle(3, 1e-2)
    assert learn.validate()["accuracy"] > 0.863


def test_an_export_predicts_alike(trained, tmp_path):
    import jaxfast

    df = table().drop(columns=["rich", "price"]).iloc[:5]
    trained.export(tmp_path / "towns.jaxfast")
    loaded = jaxfast.load_export(tmp_path / "towns.jaxfast")
    want = trained.predict_frame(df)["prediction"].tolist()
    assert [loaded.predict(df.iloc[i]).label for i in range(5)] == want
    assert [answer.label for answer in loaded.predict_batch(df)] == want
