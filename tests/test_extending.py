"""What a stranger brings from outside, by public names alone: losses, objectives and steps of their own."""

import functools
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxfast
from jaxfast import losses, optim, training, vision
from jaxfast.learner import Learner
from jaxfast.mesh import data_mesh
from jaxfast.models import ImageClassifier, LinearHead


def squares(n=128, size=8):
    """Noise images of two classes: the first channel of the second one is darkened."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    images = rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
    images[labels == 1, ..., 0] //= 3
    return vision.from_arrays(images, labels, classes=["light", "dark"], batch_size=16, augment=False)


class Net(nn.Module):
    """A body of one convolution under a linear head."""

    width: int = 4

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(self.width, (3, 3), name="conv")(image.astype(jnp.float32) / 127.5 - 1)
        return nn.Dense(2, name="head")(nn.relu(x).mean((1, 2)))


class Teacher:
    """A loss that carries weights: cross entropy, and the distance from what a fixed network answers."""

    def __init__(self, width: int = 3):
        self.constants = {"kernel": jax.random.normal(jax.random.key(1), (2, width))}

    def __call__(self, outputs, target, constants):
        plain = losses.cross_entropy(outputs, target)
        seen = jnp.tanh(outputs @ constants["kernel"]) - jnp.tanh(jax.nn.one_hot(target, 2) @ constants["kernel"])
        distance = jnp.square(seen).mean(-1)
        return plain + distance, {"plain": plain, "distance": distance}


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]


def test_a_loss_that_carries_weights(tmp_path, capsys):
    learn = Learner(squares(), Net(), loss=Teacher(), metrics=["accuracy"])
    assert len(learn.lr_find(steps=10).losses) > 2
    learn.fit(8, 3e-2)
    assert learn.history.epochs[-1]["accuracy"] > 0.9
    # its terms are columns, and stand in the history by step and by epoch
    assert capsys.readouterr().out.split("\n")[0].split() == [
        "epoch", "train_loss", "distance", "plain", "valid_loss", "accuracy", "time",
    ]  # fmt: skip
    terms = learn.history.terms
    assert terms.keys() == {"plain", "distance"} and len(terms["plain"]) == len(learn.history.losses)
    np.testing.assert_allclose(np.add(terms["plain"], terms["distance"]), learn.history.losses, rtol=1e-5)
    assert list(learn.history.epochs[0])[:4] == ["epoch", "train_loss", "distance", "plain"]
    assert "distance" in repr(learn.history)
    assert len(learn.history.plot_terms().axes) >= 2
    # validation and the losses of single examples go through the constants, too
    images, targets = learn.data.valid.batch(np.arange(len(learn.data.valid)))["image"], learn.data.valid.targets
    outputs = learn.module.apply({"params": learn.state.params}, images)
    values, _ = Teacher()(outputs, jnp.asarray(targets), Teacher().constants)
    assert learn.validate()["loss"] == pytest.approx(float(values.mean()), rel=1e-5)
    learn.save(tmp_path / "saved")
    before = leaves(learn.state)
    learn.fit(1, 1e-2)
    learn.load(tmp_path / "saved")
    assert all(map(np.array_equal, before, leaves(learn.state)))
    assert "light" in str(learn.predict(learn.data.valid[0])) or "dark" in str(learn.predict(learn.data.valid[0]))


def test_a_restart_remembers_the_terms(tmp_path):
    def fit(folder, *recipes):
        checkpoints = training.Checkpoints(folder)
        learn = Learner(squares(), Net(), loss=Teacher(), checkpoints=checkpoints, quiet=True)
        try:
            learn.fit(3, 1e-2, after_epoch=recipes)
        finally:
            checkpoints.wait()
        return learn.history

    def kill(epoch, metrics, state):
        if epoch == 1:
            raise InterruptedError

    whole = fit(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fit(tmp_path / "killed", kill)
    again = fit(tmp_path / "killed")
    assert again.terms == whole.terms and again.losses == whole.losses
    for one, two in zip(again.epochs, whole.epochs, strict=True):
        assert {name: one[name] for name in ("plain", "distance")} == {n: two[n] for n in ("plain", "distance")}


def test_constants_are_an_argument_and_no_part_of_the_program():
    module, data = Net(), squares()
    state = training.create_state(module, [data.train.batch(np.arange(1))["image"]], optim.hyper_adamw)
    part = training.trainable(state.params)
    texts = []
    for width in (3, 300_000):
        loss = Teacher(width)
        step = training.make_step(module, loss, optim.hyper_adamw, part)
        hypers = {"lr": np.float32([1e-3]), "momentum": np.float32(0.9), "weight_decay": np.float32(0)}
        batch = data.train.batch(np.arange(16))
        texts.append(jax.jit(step).lower(state, batch, hypers, loss.constants).as_text())
    assert abs(len(texts[0]) - len(texts[1])) < 1000
    assert "300000" in texts[1]


def test_weighted_sums_carry_the_weights_and_terms_of_their_losses():
    outputs, target = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([0, 1, 1, 0])
    teacher = Teacher()
    both = functools.partial(losses.weighted_sum, terms=((2.0, losses.cross_entropy), (0.5, teacher)))
    constants, call = losses.with_constants(both)
    values, terms = losses.with_terms(call(outputs, target, constants))
    plain = losses.cross_entropy(outputs, target)
    own, _ = teacher(outputs, target, teacher.constants)
    np.testing.assert_allclose(values, 2 * plain + 0.5 * own, rtol=1e-6)
    assert terms.keys() == {"plain", "distance"}
    assert losses.with_constants(losses.cross_entropy)[0] == ()


@pytest.mark.parametrize(
    "terms, message",
    [
        ({"accuracy": lambda v: v}, "reports 'accuracy', which is another column"),
        ({"mean": lambda v: v.mean()}, r"reports 'mean' of shape \(\): give one per example"),
    ],
)
def test_terms_that_cannot_be_shown_are_refused(terms, message):
    def loss(outputs, target):
        values = losses.cross_entropy(outputs, target)
        return values, {name: of(values) for name, of in terms.items()}

    with pytest.raises(ValueError, match=message):
        Learner(squares(), Net(), loss=loss, metrics=["accuracy"])


def two_networks():
    """A generator of numbers that wants to please a critic, and a critic that knows the mean of the data is 3."""
    params = {"generator": {"shift": jnp.zeros(())}, "critic": {"guess": jnp.zeros(())}}
    halves = {name: training.trainable({name: tree}) for name, tree in params.items()}

    def generator(trained, frozen, model_state, batch, key, constants):
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        shift, guess = trained["generator"]["shift"], constants["critic"]["guess"]
        value = jnp.square(shift + noise - guess).mean()
        return value, training.Report(value, model_state, {"shift": shift})

    def critic(trained, frozen, model_state, batch, key, constants):
        value = jnp.square(trained["critic"]["guess"] - batch["x"]).mean()
        return value, training.Report(value, model_state, {})

    return params, halves, {"generator": generator, "critic": critic}


def test_an_objective_of_two_networks_with_two_optimizers_in_one_compiled_chunk():
    params, halves, objectives = two_networks()
    optimizers = {"generator": optim.hyper_sgd, "critic": optim.hyper_adamw}
    updates = {name: training.make_update(objectives[name], optimizers[name], halves[name]) for name in params}
    mesh = data_mesh(jax.devices()[:1])

    def step(state, batch, hypers):
        """The critic's turn at even steps, the generator's at odd ones; the idle network is a constant."""

        def turn(name, other):
            def one(state):
                own = training.UpdateState({name: state.params[name]}, {}, state.opt_state[name])
                key = training.key_for(state.key, 2, state.step)
                own, outcome = updates[name](own, batch, hypers, key, None, {other: state.params[other]})
                nan = jnp.float32(jnp.nan)
                scalars = {"critic_loss": nan, "generator_loss": nan, f"{name}_loss": outcome.value}
                scalars |= {"shift": outcome.terms.get("shift", state.params["generator"]["shift"])}
                state = state.replace(
                    params=state.params | own.params, opt_state=state.opt_state | {name: own.opt_state}
                )
                return state, {"loss": outcome.value, "finite": outcome.applied, **scalars}

            return one

        state, scalars = jax.lax.cond(
            state.step % 2 == 0, turn("critic", "generator"), turn("generator", "critic"), state
        )
        return state.replace(step=state.step + 1), scalars

    states = {name: training.fresh_opt_state(optimizers[name], halves[name], {name: params[name]}) for name in params}
    state = training.TrainState(jnp.int32(0), params, {}, states, jax.random.key(0))
    state = jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    chunk = training.make_chunk(step, 8, mesh, resident=False, capacity=400)
    rows = training.hyper_rows(400, [0.05], 0.0, 0.0)
    x = np.random.default_rng(0).normal(3, 0.1, 8).astype(np.float32)
    done_state, scalars, done, halted = chunk(
        state, {"x": x}, np.empty(0, np.int32), np.int32(0), np.int32(400), rows, np.bool_(False)
    )
    assert int(done) == 400 and not bool(halted)
    assert scalars.keys() == {"loss", "critic_loss", "generator_loss", "shift"}  # three beside the loss
    critic, generator = np.asarray(scalars["critic_loss"]), np.asarray(scalars["generator_loss"])
    assert np.isnan(critic[1::2]).all() and np.isfinite(critic[::2]).all()
    assert np.isnan(generator[::2]).all() and np.isfinite(generator[1::2]).all()
    assert float(done_state.params["critic"]["guess"]) == pytest.approx(x.mean(), abs=0.1)
    assert float(done_state.params["generator"]["shift"]) == pytest.approx(x.mean(), abs=0.2)
    counts = [int(leaf) for leaf in jax.tree.leaves(done_state.opt_state["critic"]) if leaf.dtype == jnp.int32]
    assert counts and set(counts) == {200}  # the idle network's Adam does not count


def test_micro_batches_average_terms_as_they_average_the_loss():
    state = training.create_state(Net(), [np.zeros((1, 8, 8, 3), np.uint8)], optim.hyper_sgd)
    part, batch = training.trainable(state.params), squares().train.batch(np.arange(16))
    hypers = {"lr": np.float32([0.1]), "momentum": np.float32(0), "weight_decay": np.float32(0)}
    found = []
    for accumulate in (1, 4):
        teacher = Teacher()
        step = training.make_step(Net(), teacher, optim.hyper_sgd, part, accumulate=accumulate)
        found.append(jax.jit(step)(state, batch, hypers, teacher.constants))
    (whole, one), (parts, four) = found
    assert one.keys() == four.keys() == {"loss", "finite", "plain", "distance"}
    for name in ("loss", "plain", "distance"):
        assert float(four[name]) == pytest.approx(float(one[name]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole.params, parts.params)


def test_an_update_that_is_not_finite_changes_nothing():
    def objective(trained, frozen, model_state, batch, key, constants):
        value = jnp.log(trained["w"]) * batch["x"].mean()
        return value, training.Report(value, model_state, {})

    params = {"w": jnp.float32(1.0)}
    part = training.trainable(params)
    update = training.make_update(objective, optim.hyper_sgd, part)
    state = training.UpdateState(params, {}, training.fresh_opt_state(optim.hyper_sgd, part, params))
    hypers = {"lr": jnp.float32([0.5]), "momentum": jnp.float32(0), "weight_decay": jnp.float32(0)}
    moved, outcome = update(state, {"x": jnp.ones(2)}, hypers, jax.random.key(0))
    assert float(moved.params["w"]) == pytest.approx(0.5) and bool(outcome.applied)
    kept, outcome = update(state, {"x": jnp.full(2, jnp.inf)}, hypers, jax.random.key(0))
    assert float(kept.params["w"]) == 1.0 and not bool(outcome.sound) and not bool(outcome.applied)


class Body(nn.Module):
    """A pyramid of one's own: two blocks, each a group of rates."""

    dtype: Any = jnp.float32
    block_names = ("low", "high")
    groups = (("low",), ("high",))

    @nn.compact
    def features(self, x, train=False, *, after=None, until=None):
        low = nn.relu(nn.Conv(4, (3, 3), strides=2, dtype=self.dtype, name="low")(x))
        return {"low": low, "high": nn.relu(nn.Conv(8, (3, 3), dtype=self.dtype, name="high")(low))}

    def __call__(self, x, train=False):
        return self.features(x)["high"]


class Plain(nn.Module):
    """A net of three groups that takes no `train`."""

    groups = (("conv",), ("dense",), ("head",))

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(16, (3, 3), name="conv")(image.astype(jnp.float32) / 127.5 - 1)
        x = nn.relu(nn.Dense(16, name="dense")(nn.relu(x).mean((1, 2))))
        return nn.Dense(2, name="head")(x)


def use(learn, tmp_path, lr=1e-2, epochs=6):
    """Search, fit, validate, predict, save and take up again: what every learner does."""
    assert len(learn.lr_find(steps=10).losses) > 2
    learn.fit(epochs, lr)
    assert learn.validate()["accuracy"] > 0.9
    assert learn.predict(learn.data.valid[0]).probabilities.sum() == pytest.approx(1)
    learn.save(tmp_path / "saved")
    before = leaves(learn.state)
    learn.fit(1, lr)
    learn.load(tmp_path / "saved")
    assert all(map(np.array_equal, before, leaves(learn.state)))


@pytest.mark.parametrize(
    "module",
    [
        ImageClassifier(Body(), LinearHead(2), mean=(127.0,) * 3, std=(64.0,) * 3),
        Plain(),
        nn.Sequential([lambda x: x.astype(jnp.float32) / 127.5 - 1, nn.Conv(4, (3, 3)), nn.relu,
                       lambda x: x.mean((1, 2)), nn.Dense(2)]),
    ],
    ids=["body", "plain", "sequential"],
)  # fmt: skip
def test_a_module_with_and_without_a_mode(module, tmp_path):
    use(Learner(squares(), module, loss=losses.cross_entropy, metrics=["accuracy"], quiet=True), tmp_path, 3e-2, 20)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm()], ids=["Dropout", "BatchNorm"])
def test_a_sequential_of_layers_with_modes_is_refused_with_what_does_it(layer):
    module = nn.Sequential([nn.Dense(4), layer, nn.Dense(2)])
    with pytest.raises(ValueError, match=f"does not tell {type(layer).__name__}") as refusal:
        Learner(squares(), module, loss=losses.cross_entropy)
    names = {"nn": nn}
    exec(str(refusal.value).partition("\n\n")[2], names)  # what it says runs
    shape = jax.eval_shape(lambda: names["Net"]().init_with_output(jax.random.key(0), jnp.zeros((2, 3)))[0]).shape
    assert shape == (2, 10)


OPTIMIZERS = {
    "lion": optax.lion,
    "lion, its b2 fixed": functools.partial(optax.lion, b2=0.95),
    "muon": optax.contrib.muon,
    "adam": optax.adam,
    "sgd": optax.sgd,
    "direction": optim.per_group(optax.scale_by_lion()),
    "direction of the momentum": optim.per_group(lambda b1: optax.scale_by_adam(b1)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_rates_of_an_own_optimizer_reach_their_groups(optimizer):
    learn = Learner(squares(), Plain(), loss=losses.cross_entropy, optimizer=optimizer, quiet=True)
    before = jax.device_get(learn.state.params)
    learn.fit(1, [0.0, 0.0, 1e-3])
    after = jax.device_get(learn.state.params)
    same = {name: all(map(np.array_equal, *map(jax.tree.leaves, (before[name], after[name])))) for name in before}
    assert same == {"conv": True, "dense": True, "head": False}


def test_a_factory_gets_the_momentum_and_the_decay_of_the_fit():
    given = []

    def factory(learning_rate, b1=0.5, weight_decay=0.5):
        given.append((b1, weight_decay))
        return optax.lion(learning_rate, b1=b1, weight_decay=weight_decay)

    hypers = {"lr": [0.1, 0.2], "momentum": 0.85, "weight_decay": 0.03}
    params = {"a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "b": {"kernel": jnp.ones((2, 2))}}
    labels = {"a": {"kernel": 0, "bias": 0}, "b": {"kernel": 1}}
    transformation = optim.from_factory(factory)(hypers, labels=labels)
    assert set(given) == {(0.85, 0.0), (0.85, 0.03)}  # norms and biases do not decay
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(zeros, transformation.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * 0.03, rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["kernel"], -0.2 * 0.03, rtol=1e-6)
    assert not updates["a"]["bias"].any()


def test_optimizers_that_lose_rates_are_refused():
    make = lambda optimizer: Learner(squares(), Plain(), loss=losses.cross_entropy, optimizer=optimizer)
    with pytest.raises(ValueError, match="is made already and holds its rate: give its factory, such as optimizer="):
        make(optax.lion(1e-3))
    with pytest.raises(ValueError, match="ignores labels=, and the model has 3 groups"):
        make(lambda hypers, labels=None: optax.lion(hypers["lr"][-1]))
    with pytest.raises(ValueError, match="the optimizer .* fails: .*learning"):
        make(lambda hypers, labels=None: optax.lion(hypers["learning"]))
    with pytest.raises(ValueError, match="is not a function"):
        make(lambda params: params)


def test_a_schedule_for_each_group_and_one_of_the_momentum():
    learn = Learner(squares(), Plain(), loss=losses.cross_entropy, quiet=True)
    rates = [optax.constant_schedule(0.0), optax.linear_schedule(0.0, 1e-3, 6), 1e-2]
    learn.fit(1, rates, momentum=optax.linear_schedule(0.5, 0.9, 6))
    lrs = np.array(learn.history.lrs)
    np.testing.assert_allclose(lrs[:, 0], 0)
    np.testing.assert_allclose(lrs[:, 1], np.minimum(np.arange(len(lrs)) / 6, 1) * 1e-3, rtol=1e-5)
    np.testing.assert_allclose(lrs[:, 2], 1e-2, rtol=1e-6)
    np.testing.assert_allclose(learn.history.momentums[:4], 0.5 + 0.4 * np.arange(4) / 6, rtol=1e-5)
    with pytest.raises(ValueError, match="2 schedules for 3 parameter groups"):
        learn.fit(1, rates[:2])
    with pytest.raises(ValueError, match="momentum=1.5"):
        learn.fit(1, 1e-3, momentum=1.5)


@pytest.mark.parametrize("kind", ["of the task", "carried", "carried by a sum"])
def test_own_losses_end_in_probabilities(kind, tmp_path):
    own = lambda outputs, target: jnp.array([1.0, 5.0])[target] * losses.cross_entropy(outputs, target)
    halved = lambda outputs: jax.nn.softmax(outputs / 2)
    carried = losses.with_activation(own, halved)
    loss, activation = {
        "of the task": (own, jax.nn.softmax),
        "carried": (carried, halved),
        "carried by a sum": (functools.partial(losses.weighted_sum, terms=((0.5, carried),)), halved),
    }[kind]
    learn = Learner(squares(), Net(), loss=loss, metrics=["accuracy"], quiet=True)
    learn.fit(1, 1e-2)
    outputs = learn.module.apply(learn.state.variables, learn.data.valid.batch(np.arange(8))["image"])
    np.testing.assert_allclose(learn.get_preds()[0][:8], activation(outputs), rtol=1e-5)
    learn.export(tmp_path / "own.jaxfast")
    told = jaxfast.load_export(tmp_path / "own.jaxfast").predict(learn.data.valid.batch(np.arange(1))["image"][0])
    np.testing.assert_allclose(told.probabilities, activation(outputs)[0], rtol=1e-4)


def test_only_public_names_are_used_here():
    text = Path(__file__).read_text()
    imported = re.findall(r"^from (jaxfast[\w.]*) import (.+)$", text, re.MULTILINE)
    names = [name.strip() for _, names in imported for name in names.split(",")]
    assert not [name for name in names if name.startswith("_")]
    used = set(re.findall(r"\b(?:learn|training|losses|optim|vision)\.(_\w+)", text)) - {"__all__"}
    assert not used, f"private names: {used}"
    assert set(re.findall(r"\btraining\.([a-zA-Z]\w*)", text)) <= set(training.__all__)
