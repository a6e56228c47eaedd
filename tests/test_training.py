"""Step, chunk, finder and loader below the learner: values, work saved by freezing, precision, edges."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import arrays, data, module

from jaxfast import losses, optim, precision, training
from jaxfast.data import loader
from jaxfast.learner import Learner
from jaxfast.mesh import data_mesh, replicated
from jaxfast.models import ClassifierHead, ImageClassifier, resnet, resnet18
from jaxfast.training.finder import LRFinder

HYPERS = {"lr": np.full(3, 1e-2, np.float32), "momentum": np.float32(0.9), "weight_decay": np.float32(0.01)}


@pytest.fixture(scope="module")
def task():
    """(module, state, batch) of the small task on one device."""
    images, labels = arrays(32)
    net = module()
    batch = {"image": images, "target": labels.astype(np.int32)}
    return net, training.create_state(net, [images[:1]], optim.hyper_adamw, groups=net.groups), batch


def step_of(net, state, **options):
    part = training.trainable(state.params, net.groups, **options)
    step = training.make_step(net, losses.cross_entropy, optim.hyper_adamw, part)
    opt_state = training.fresh_opt_state(optim.hyper_adamw, part, state.params)
    return step, state.replace(opt_state=opt_state)


def test_the_step_is_the_optimizer_on_the_gradient(task):
    """Against jax.grad of the whole objective and optax by hand."""
    net, state, batch = task
    step, state = step_of(net, state)
    new, metrics = jax.jit(step)(state, batch, HYPERS)

    def objective(params):
        key = training.key_for(state.key, 2, 0)
        outputs, _ = net.apply(
            {"params": params, **state.model_state},
            batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return losses.cross_entropy(outputs, batch["target"]).mean()

    value, grads = jax.jit(jax.value_and_grad(objective))(state.params)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-6)
    # Adam's first step is lr * g / (|g| + eps), after a decay of lr * wd on matrices
    for old, moved, g in zip(*(jax.tree.leaves(t) for t in (state.params, new.params, grads)), strict=True):
        decay = 1 - 1e-2 * 0.01 if old.ndim > 1 else 1.0
        expected = old * decay - 1e-2 * g / (jnp.abs(g) + 1e-5)
        np.testing.assert_allclose(moved, expected, rtol=2e-3, atol=2e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize("kind", ["inputs", "rate"])
def test_a_step_that_is_not_finite_changes_nothing(task, kind):
    net, state, batch = task
    step, state = step_of(net, state)
    hypers = HYPERS | {"lr": np.full(3, np.nan, np.float32)} if kind == "rate" else HYPERS
    if kind == "inputs":
        batch = batch | {"image": batch["image"].astype(np.float32) * np.nan}
    new, metrics = jax.jit(step)(state, batch, hypers)
    assert not metrics["finite"]
    assert int(new.step) == int(state.step) + 1
    same = jax.tree.map(np.array_equal, (state.variables, state.opt_state), (new.variables, new.opt_state))
    assert all(jax.tree.leaves(same))


def test_the_loss_scale_halves_and_grows(task):
    net, state, batch = task
    step, state = step_of(net, state)
    state = state.replace(loss_scale=precision.LossScale.create(2.0**15, period=2))
    step = jax.jit(step)
    good, metrics = step(state, batch, HYPERS)
    plain, _ = step(state.replace(loss_scale=None), batch, HYPERS)
    assert metrics["finite"] and float(good.loss_scale.scale) == 2.0**15
    for a, b in zip(jax.tree.leaves(good.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    good, _ = step(good, batch, HYPERS)
    assert float(good.loss_scale.scale) == 2.0**16 and int(good.loss_scale.good_steps) == 0

    # a scale that overflows the gradients: the step is skipped without being an error, and the scale is halved
    over = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(np.inf)))
    skipped, metrics = step(over, batch, HYPERS)
    assert metrics["finite"]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, skipped.params, state.params)))
    assert float(skipped.loss_scale.scale) == 2.0**24


def flops(step, state, batch):
    lowered = jax.jit(step).lower(state, batch, HYPERS)
    # optimizing machine code takes long and does not change what is counted
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).cost_analysis()["flops"]


def test_freezing_saves_work():
    net = ImageClassifier(resnet18(), ClassifierHead(10), mean=(127.0,) * 3, std=(64.0,) * 3)
    images = np.zeros((8, 64, 64, 3), np.uint8)
    batch = {"image": images, "target": np.zeros(8, np.int32)}
    state = training.create_state(net, [images[:1]], optim.hyper_adamw, groups=net.groups)
    full = flops(*step_of(net, state), batch)
    frozen = flops(*step_of(net, state, freeze_to=-1, train_norm=False), batch)
    norms = flops(*step_of(net, state, freeze_to=-1), batch)
    assert frozen / full <= 0.45
    assert frozen < norms < full


def test_frozen_norms_use_running_statistics(task):
    net, state, batch = task
    step, frozen = step_of(net, state, freeze_to=-1, train_norm=False)
    new, metrics = jax.jit(step)(frozen, batch, HYPERS)
    same = jax.tree.map(
        np.array_equal, state.model_state["batch_stats"]["body"], new.model_state["batch_stats"]["body"]
    )
    assert all(jax.tree.leaves(same))
    # the head's own norms train on
    assert not np.array_equal(
        state.model_state["batch_stats"]["head"]["norm0"]["mean"],
        new.model_state["batch_stats"]["head"]["norm0"]["mean"],
    )


@pytest.mark.parametrize("n, groups", [(24, 5), (20, 3)])
def test_groups_that_do_not_divide_the_batch(n, groups):
    images, labels = arrays(n)
    net = module()
    state = training.create_state(net, [images[:1]], optim.hyper_adamw, groups=net.groups)
    part = training.trainable(state.params, net.groups)
    step = training.make_step(net, losses.cross_entropy, optim.hyper_adamw, part, norm_groups=groups)
    with pytest.raises(ValueError, match=f"a training batch of {n} does not split into {groups}"):
        jax.eval_shape(step, state, {"image": images, "target": labels}, HYPERS)


def test_trainable_parts(task):
    net, state, _ = task
    everything = training.trainable(state.params, net.groups)
    head = training.trainable(state.params, net.groups, freeze_to=-1, train_norm=False)
    with_norms = training.trainable(state.params, net.groups, freeze_to=2)
    assert head.paths < with_norms.paths < everything.paths
    assert all(path.startswith("head/") for path in head.paths)
    assert all("norm" in path for path in with_norms.paths - head.paths)
    trained, frozen = with_norms.split(state.params)
    merged = with_norms.merge(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(state.params)
    with pytest.raises(ValueError, match=r"freeze_to\(-4\) names none of the model's 3 parameter groups: use -3..2"):
        training.trainable(state.params, net.groups, freeze_to=-4)


def fastai_valley(lrs, losses):
    """fastai's valley in its own quadratic words, for comparison."""
    n = len(losses)
    longest = [1] * n
    end = 0
    for i in range(1, n):
        for j in range(i):
            if losses[i] < losses[j] and longest[i] < longest[j] + 1:
                longest[i] = longest[j] + 1
        if longest[end] < longest[i]:
            end = i
    start = end - longest[end]
    third = (end - start) / 3
    return lrs[start + int(third) + int(third / 2)]


def test_suggestions():
    lrs = np.geomspace(1e-7, 10, 100, endpoint=False)
    rng = np.random.default_rng(0)
    # flat, a fall around 1e-3, a rise after 1e-1
    x = np.log10(lrs)
    curve = 1 - 0.6 / (1 + np.exp(-2 * (x + 3))) + np.exp(4 * (x + 0.5)) + 0.01 * rng.normal(size=100)
    found = LRFinder(lrs, curve, curve, 100)
    cut = slice(10, -5)
    assert found.valley == pytest.approx(fastai_valley(lrs[cut], curve[cut]))
    assert found.minimum == pytest.approx(lrs[cut][curve[cut].argmin()] / 10)
    slopes = np.diff(curve[cut]) / np.diff(np.log(lrs[cut]))
    assert found.steep == pytest.approx(lrs[cut][slopes.argmin()])
    assert 1e-5 < found.valley < 1e-1
    # fastai's slide on the same numbers, worked with its own loop
    gradient, right, left = np.gradient(curve[cut]), -1, -16
    suggestion = lrs[cut][left]
    while left >= -85 and abs(gradient[right] - gradient[left]) > 0.005:
        suggestion, right, left = lrs[cut][left], right - 1, left - 1
    assert found.slide == pytest.approx(suggestion)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 20])
def test_suggestions_of_a_short_search(n):
    lrs = np.geomspace(1e-4, 1e-1, n)
    found = LRFinder(lrs, np.ones(n), np.linspace(1, 0.5, n), 100)
    assert all(np.isfinite(value) and value > 0 for value in found.suggestions.values())


@pytest.mark.parametrize("steps", [1, 3, training.CAPACITY, training.CAPACITY + 5])
def test_schedules_as_a_table(steps):
    rows = training.hyper_rows(steps, [lambda i: i * 1.0, lambda i: i * 2.0], lambda i: 0.9, lambda i: 0.1)
    np.testing.assert_array_equal(rows["lr"], np.arange(steps)[:, None] * [1.0, 2.0])
    assert rows["momentum"].shape == rows["weight_decay"].shape == (steps,)
    assert rows["lr"].dtype == np.float32


def test_chunks_do_not_depend_on_their_cut():
    """The same 12 steps as 12, 3 + 9 and twelve dispatches, over an epoch's end: the same numbers bit for bit."""
    task, net = data(n=320), module()
    mesh = data_mesh()
    state = training.create_state(net, [task.train.batch(np.arange(1))["image"]], optim.hyper_adamw, groups=net.groups)
    part = training.trainable(state.params, net.groups)
    step = training.make_step(net, losses.cross_entropy, optim.hyper_adamw, part, augment=task.augment, norm_groups=8)
    chunk = training.make_chunk(step, 32, mesh, resident=True)
    feed = loader.Resident.put(task.train, 32, mesh)
    rows = training.hyper_rows(12, [lambda i: 1e-3] * 3, lambda i: 0.9, lambda i: 0.01)
    results = []
    for pace in (training.Pace(1e9, 100), training.Pace(1e9, 3), training.Pace(0.0, 1)):
        current = jax.device_put(jax.tree.map(jnp.copy, state), replicated(mesh))
        seen = []
        for piece in training.run(current, chunk, feed, rows, pace):
            current = piece.state
            seen.extend(piece.losses.tolist())
        results.append((seen, jax.device_get(current.params)))
    assert len(results[0][0]) == 12
    for seen, params in results[1:]:
        assert seen == results[0][0]
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, params, results[0][1])))


def test_an_epoch_is_a_permutation():
    key = jax.random.key(3)
    orders = [np.asarray(loader.epoch_order(key, epoch, 100)) for epoch in range(2)]
    assert not np.array_equal(*orders)
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    np.testing.assert_array_equal(orders[1], loader.epoch_order(key, 1, 100))


def test_streamed_batches_are_the_resident_ones():
    task = data(n=320)
    mesh = data_mesh()
    resident, streamed = loader.Resident.put(task.train, 32, mesh), loader.Streamed(task.train, 32, mesh)
    order, epoch = resident.order(jax.random.key(0), 0), streamed.order(jax.random.key(0), 0)
    for start in (0, 1, 2, 5):
        a, b = resident.piece(order, start, 4), streamed.piece(epoch, start, 4)
        index = np.asarray(a.order)[a.start * 32 : (a.start + 1) * 32]
        assert b.n == 1
        for name in ("image", "target"):
            np.testing.assert_array_equal(np.asarray(a.data[name])[index], b.data[name])


def test_precision_by_device():
    class Device:
        def __init__(self, platform, capability=None):
            self.platform, self.compute_capability = platform, capability

    table = [("cpu", None, "float32", False), ("tpu", None, "bfloat16", False), ("gpu", "9.0", "bfloat16", False)]
    table += [("gpu", "8.0", "bfloat16", False), ("gpu", "7.5", "float16", True), ("gpu", "7.0", "float16", True)]
    for platform, capability, dtype, scaled in table:
        chosen = precision.resolve("auto", Device(platform, capability))
        assert (chosen.dtype.name, chosen.loss_scale) == (dtype, scaled)


def test_bf16_keeps_parameters_and_losses_in_fp32(task):
    net, state, batch = task
    half = precision.cast_module(net, jnp.bfloat16)
    assert half.body.dtype == jnp.bfloat16 and net.body.dtype == jnp.float32
    step, state = step_of(half, state)
    new, metrics = jax.jit(step)(state, batch, HYPERS)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(new.variables))
    assert metrics["loss"].dtype == jnp.float32
    jaxpr = str(jax.make_jaxpr(functools.partial(half.apply, train=False))(state.variables, batch["image"]))
    assert "bf16" in jaxpr


def test_a_batch_in_parts_is_a_batch_in_more_groups(task):
    """Two parts of 4 groups are the gradient of 8 groups at once: no number of the batch meets another one's."""
    net, state, batch = task
    net = ImageClassifier(net.body, net.head.clone(dropout=0.0), mean=net.mean, std=net.std)
    part = training.trainable(state.params, net.groups)
    hypers = HYPERS | {"momentum": np.float32(0.0)}
    state = state.replace(opt_state=training.fresh_opt_state(optim.hyper_sgd, part, state.params))

    def after(**options):
        step = training.make_step(net, losses.cross_entropy, optim.hyper_sgd, part, **options)
        return jax.jit(step)(state, batch, hypers)

    parts, metrics = after(accumulate=2, norm_groups=4)
    whole, expected = after(norm_groups=8)
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    for a, b in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    other, _ = after(norm_groups=4)
    kernel = lambda state: state.params["body"]["stem"]["conv"]["kernel"]
    assert abs(kernel(other) - kernel(parts)).max() > 1e-5


def test_a_batch_that_parts_do_not_divide(task):
    net, state, batch = task
    part = training.trainable(state.params, net.groups)
    step = training.make_step(net, losses.cross_entropy, optim.hyper_adamw, part, accumulate=3, norm_groups=4)
    with pytest.raises(ValueError, match="a batch of 32 does not split into accumulate=3 parts of 4 groups"):
        jax.eval_shape(step, state, batch, HYPERS)


def test_a_sharded_state_takes_its_share_of_memory():
    mesh = data_mesh()
    net = ImageClassifier(resnet18(), ClassifierHead(3), mean=(127.0,) * 3, std=(64.0,) * 3)
    example = [np.zeros((1, 32, 32, 3), np.uint8)]
    whole, split = (
        training.create_state(net, example, optim.hyper_adamw, groups=net.groups, mesh=mesh, shard=shard)
        for shard in (False, True)
    )
    held = lambda state: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state.opt_state))
    assert held(split) < held(whole) / 7  # an eighth, and what is too small to split
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_bf16_reaches_the_accuracy_of_fp32(outside_data):
    """On 4,000 images of CIFAR-10, within the noise of 1,000 test images (two standard errors of a difference)."""
    from experiments import one_cycle

    config = dataclasses.replace(one_cycle.DEFAULT, images=4000, test_images=1000, epochs=4)
    task = one_cycle.cifar(config, outside_data("cifar10.npz"), search=False)
    reached = {}
    for kind in ("fp32", "bf16"):
        body = resnet.ResNet((1, 1, 1), resnet.BasicBlock, width=8, small_stem=True)
        net = ImageClassifier(body, ClassifierHead(10, hidden=()), mean=(127.0,) * 3, std=(64.0,) * 3)
        learn = Learner(task, net, loss=losses.cross_entropy, metrics=["accuracy"], precision=kind, quiet=True)
        learn.fit_one_cycle(4, 1e-2)
        reached[kind] = learn.validate()["accuracy"]
    assert reached["fp32"] > 0.35
    assert reached["bf16"] > reached["fp32"] - 2 * np.sqrt(2 * 0.25 / 1000)
