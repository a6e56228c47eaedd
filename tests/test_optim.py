import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxfast.optim import (
    discriminative,
    hyper_adamw,
    hyper_rmsprop,
    hyper_sgd,
    label_by_prefix,
    one_cycle_adamw,
    one_cycle_sgd,
    rmsprop,
)
from jaxfast.schedules import one_cycle, one_cycle_momentum

two_groups = label_by_prefix([("body",), ("head",)])


def make_params(seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    return {"body": {"kernel": draw(3, 4), "scale": draw(4)}, "head": {"kernel": draw(4, 2), "bias": draw(2)}}


def make_grads(n):
    return [make_params(seed) for seed in range(1, n + 1)]


def train(tx, params, all_grads):
    state, update = tx.init(params), jax.jit(tx.update)
    for grads in all_grads:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(ours, theirs, rtol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), ours, theirs)


def hypers(lr, momentum=0.9, weight_decay=0.0):
    return {"lr": np.asarray(lr), "momentum": momentum, "weight_decay": weight_decay}


# Rates


@pytest.mark.parametrize(
    "lr, n, factor, rates",
    [
        (0.1, 3, None, (0.1, 0.1, 0.1)),
        (np.float32(0.5), 1, None, (0.5,)),
        (jnp.array(0.5), 2, None, (0.5, 0.5)),
        (0, 2, None, (0.0, 0.0)),
        (1.0, 3, 2.6, (1 / 6.76, 1 / 2.6, 1.0)),
        (slice(1e-3), 1, None, (1e-3,)),
        (slice(1e-3), 3, None, (1e-4, 1e-4, 1e-3)),
        (slice(1e-5, 1e-3), 1, None, (1e-3,)),
        (slice(1e-5, 1e-3), 2, None, (1e-5, 1e-3)),
        (slice(1e-6, 1e-3), 4, None, (1e-6, 1e-5, 1e-4, 1e-3)),
        ((0.1, 0.2), 2, None, (0.1, 0.2)),
        (np.array([0.1, 0.2]), 2, None, (0.1, 0.2)),
        ([None, 0.2], 2, None, (None, 0.2)),
    ],
)
def test_discriminative(lr, n, factor, rates):
    ours = discriminative(lr, n, factor=factor)
    assert type(ours) is tuple and [r is None for r in ours] == [r is None for r in rates]
    np.testing.assert_allclose(
        [r for r in ours if r is not None], [r for r in rates if r is not None], rtol=1e-9
    )


@pytest.mark.parametrize(
    "lr, n, factor, message",
    [
        ((0.1, 0.2), 3, None, "got 2 rates for 3 parameter groups: give one"),
        ([0.1], 2, None, "got 1 rates for 2"),
        (slice(None), 2, None, r"slice\(last\) or slice\(first, last\)"),
        (slice(1, 2, 3), 2, None, r"slice\(last\) or slice\(first, last\)"),
        (slice(0.0, 0.1), 2, None, "two positive rates"),
        (-0.1, 2, None, "finite and not negative"),
        (float("nan"), 2, None, "finite and not negative"),
        (slice(-0.1), 2, None, "finite and not negative"),
        (slice(0.1), 2, 2.6, "factor spaces one rate"),
        (0.1, 2, 0.0, "factor spaces one rate"),
        (None, 2, None, "a number, a slice or a sequence"),
        (0.1, 0, None, "n_groups must be at least 1"),
    ],
)
def test_discriminative_errors(lr, n, factor, message):
    with pytest.raises(ValueError, match=message) as error:
        discriminative(lr, n, factor=factor)
    assert "\n" not in str(error.value)


# Groups


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:  # what an Equinox module is to JAX
    weight: jax.Array
    bias: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Net:
    layers: list[Linear]
    head: Linear


def make_net():
    return Net(
        [Linear(jnp.ones((2, 2)), jnp.ones(2)), Linear(jnp.ones((2, 2)), None)],
        Linear(jnp.ones((2, 1)), jnp.ones(1)),
    )


def test_labels_of_a_dict_a_module_and_a_flax_tree():
    tree = {"stem": 0, "layer1_0": {"conv": 0}, "layer1": 0, "block1": {"a": 0}, "block10": {"a": 0}}
    labels = label_by_prefix([("stem", "layer1"), ("block1",), ("block10/a",)])(tree)
    assert labels == {
        "stem": 0,
        "layer1_0": {"conv": 0},
        "layer1": 0,
        "block1": {"a": 1},
        "block10": {"a": 2},
    }

    labels = label_by_prefix([("layers/0", "layers/1/weight"), ("head",)])(make_net())
    assert labels == Net([Linear(0, 0), Linear(0, None)], Linear(1, 1))

    variables = nn.Sequential([nn.Dense(2), nn.Dense(1)]).init(jax.random.key(0), jnp.ones((1, 3)))
    labels = label_by_prefix([("layers_0",), ("layers_1",)])(variables["params"])
    assert labels == {"layers_0": {"bias": 0, "kernel": 0}, "layers_1": {"bias": 1, "kernel": 1}}


@pytest.mark.parametrize(
    "groups, message",
    [
        ([("body",)], "no group has a prefix of head/bias, head/kernel: add one"),
        ([("body",), ("head", "body/scale")], r"more have a prefix of body/scale \(groups \[0, 1\]\)"),
        (
            [("body",), ("head",), ("top", "neck")],
            r"no parameter matches the group \['top', 'neck'\]; there are body/kernel",
        ),
        ([("bod", "head")], "no group has a prefix of body/kernel, body/scale"),
        (["body", "head"], r"group 0 is a string: .*such as \('body',\)"),
    ],
)
def test_label_errors(groups, message):
    with pytest.raises(ValueError, match=message) as error:
        label_by_prefix(groups)(make_params())
    assert "\n" not in str(error.value)


def test_label_errors_list_a_few_paths():
    with pytest.raises(ValueError, match="of w0, w1, w2, w3 and 5 more: add"):
        label_by_prefix([("b",)])({f"w{i}": 0 for i in range(9)})


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: one_cycle_adamw(9, (0.1, 0.2, 0.3), labels=two_groups),
            "got 3 rates for 2 parameter groups",
        ),
        (lambda: one_cycle_adamw(9, (0.1, 0.2)), "got 2 rates for 1 parameter groups"),
        (lambda: one_cycle_sgd(0, 0.1), "total_steps must be at least 1"),
        (lambda: one_cycle_adamw(9, 0.1, pct_start=2), "pct_start must be"),
        (lambda: hyper_adamw(hypers([0.1]), labels=two_groups), "got 1 rates for 2 parameter groups"),
        (lambda: hyper_sgd(hypers(0.1)), "one rate per group, got 0.1"),
        (
            lambda: rmsprop(0.1, labels=lambda p: jax.tree.map(lambda _: "body", p)),
            "labels must be ints.* got 'body'",
        ),
    ],
)
def test_mismatch_errors(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make().init(make_params())
    assert "\n" not in str(error.value)


# Steps, against fastai's in double precision and against torch's


def fastai_adam(params, all_grads, rates, moms, wd, sqr_mom=0.99, eps=1e-5):
    """fastai's optimizer.py in numpy; `rates` and `moms` go by step, `rates` and `wd` are trees."""
    leaves, treedef = jax.tree.flatten(params)
    new = []
    for k, p in enumerate(np.asarray(leaf, np.float64) for leaf in leaves):
        grad_avg, sqr_avg = np.zeros_like(p), np.zeros_like(p)
        for i, grads in enumerate(all_grads):
            g = np.asarray(jax.tree.leaves(grads)[k], np.float64)
            lr, mom = jax.tree.leaves(rates[i])[k], moms[i]
            p = p * (1 - lr * jax.tree.leaves(wd)[k])
            grad_avg = mom * grad_avg + (1 - mom) * g
            sqr_avg = sqr_mom * sqr_avg + (1 - sqr_mom) * g * g
            debias1, debias2 = 1 - mom ** (i + 1), 1 - sqr_mom ** (i + 1)
            p = p - lr / debias1 * grad_avg / (np.sqrt(sqr_avg / debias2) + eps)
        new.append(p)
    return jax.tree.unflatten(treedef, new)


def like_params(body, head):
    return {"body": {"kernel": body, "scale": body}, "head": {"kernel": head, "bias": head}}


decays = {"body": {"kernel": 0.1, "scale": 0.0}, "head": {"kernel": 0.1, "bias": 0.0}}


@pytest.mark.parametrize("n", [1, 2, 12])
def test_one_cycle_adamw_is_fastais(n):
    tx = one_cycle_adamw(12, slice(1e-3, 1e-1), labels=two_groups, weight_decay=0.1)
    grads = make_grads(n)
    body, head, mom = one_cycle(12, 1e-3), one_cycle(12, 1e-1), one_cycle_momentum(12)
    rates = [like_params(float(body(i)), float(head(i))) for i in range(n)]
    expected = fastai_adam(make_params(), grads, rates, [float(mom(i)) for i in range(n)], decays)
    assert_close(train(tx, make_params(), grads), expected)


def torch_train(make, all_grads, params=None):
    leaves, treedef = jax.tree.flatten(params or make_params())
    tensors = [torch.tensor(np.asarray(leaf)) for leaf in leaves]
    optimizer = make(tensors)
    for grads in all_grads:
        for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
            tensor.grad = torch.tensor(np.asarray(grad))
        optimizer.step()
    return jax.tree.unflatten(treedef, [tensor.numpy() for tensor in tensors])


everything = lambda params: jax.tree.map(lambda _: True, params)


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (
            hyper_adamw(hypers([0.05], 0.9, 0.1), decay_mask=everything),
            lambda p: torch.optim.AdamW(p, 0.05, (0.9, 0.99), eps=1e-5, weight_decay=0.1),
        ),
        (hyper_sgd(hypers([0.05], 0.9)), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
        (hyper_sgd(hypers([0.05], 0.0)), lambda p: torch.optim.SGD(p, 0.05)),
        (
            hyper_sgd(hypers([0.05], 0.9), nesterov=True),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        ),
        (rmsprop(0.05), lambda p: torch.optim.RMSprop(p, 0.05, alpha=0.99, eps=1e-8)),
        (
            rmsprop(0.05, momentum=0.9),
            lambda p: torch.optim.RMSprop(p, 0.05, alpha=0.99, eps=1e-8, momentum=0.9),
        ),
    ],
    ids=["adamw", "sgd", "plain_sgd", "nesterov", "rmsprop", "rmsprop_momentum"],
)
def test_steps_are_torchs(ours, theirs):
    grads = make_grads(8)
    assert_close(train(ours, make_params(), grads), torch_train(theirs, grads))


def test_one_cycle_sgd_is_fastais():
    tx = one_cycle_sgd(6, (0.01, 0.1), labels=two_groups, weight_decay=0.1, div=5.0)
    grads, mom = make_grads(6), one_cycle_momentum(6)
    expected = make_params()
    average = jax.tree.map(np.zeros_like, expected)
    for i, g in enumerate(grads):
        rate = like_params(float(one_cycle(6, 0.01, div=5.0)(i)), float(one_cycle(6, 0.1, div=5.0)(i)))
        average = jax.tree.map(partial(np.multiply, float(mom(i))), average)
        average = jax.tree.map(np.add, average, g)
        expected = jax.tree.map(
            lambda p, a, lr, wd: p * (1 - lr * wd) - lr * a, expected, average, rate, decays
        )
    assert_close(train(tx, make_params(), grads), expected)


def test_rmsprop_decays_by_hand():
    tx = rmsprop(slice(0.1), labels=lambda p: {"a": 0, "b": 1}, weight_decay=0.5)
    params = {"a": jnp.full((1, 1), 2.0), "b": jnp.full((1, 1), 2.0)}
    # v = .01 g^2, so the first step is lr * g / (.1 |g|) = 10 lr; the decay takes lr * .5 * 2.
    expected = {"a": np.full((1, 1), 2 - 0.1 - 0.01), "b": np.full((1, 1), 2 - 1.0 - 0.1)}
    assert_close(train(tx, params, [jax.tree.map(lambda p: 3 * p, params)]), expected)


def test_decay_mask_sees_the_whole_tree():
    def mask(params):
        assert set(params) == {"body", "head"} and params["body"]["scale"].ndim == 1
        return like_params(False, True)

    zeros = [jax.tree.map(jnp.zeros_like, make_params())]
    trained = train(
        hyper_sgd(hypers([0.1, 0.1], 0.9, 0.5), labels=two_groups, decay_mask=mask), make_params(), zeros
    )
    expected = jax.tree.map(lambda p, f: p * f, make_params(), like_params(1.0, 0.95))
    assert_close(trained, expected)


# How they are used


@pytest.mark.parametrize("make", [hyper_adamw, hyper_sgd, hyper_rmsprop])
def test_settings_share_one_compilation(make):
    traces = []

    @jax.jit
    def step(params, state, grads, hypers):
        traces.append(1)
        updates, state = make(hypers, labels=two_groups).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    grads = make_grads(4)
    all_hypers = [hypers(lr, *rest) for lr, *rest in [([0.1, 0.2], 0.9, 0.1), ([0.0, 1e-3], 0.5, 0.0)]]
    for setting in all_hypers:
        setting = jax.tree.map(np.float32, setting)
        params, state = make_params(), make(setting, labels=two_groups).init(make_params())
        for g in grads:
            params, state = step(params, state, g, setting)
        assert_close(params, train(make(setting, labels=two_groups), make_params(), grads), rtol=1e-6)
    assert len(traces) == 1


def test_state_structure_does_not_depend_on_values():
    states = [
        hyper_adamw(h, labels=two_groups).init(make_params())
        for h in (hypers([0.1, 0.2]), hypers(jnp.zeros(2), jnp.zeros(()), jnp.ones(())))
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_hypers_may_have_more_groups_than_the_tree():
    head = {"head": make_params()["head"]}  # what a step trains when the body is frozen
    tx = hyper_sgd(hypers([9.0, 0.1], 0.0), labels=lambda p: jax.tree.map(lambda _: 1, p))
    assert_close(train(tx, head, [head]), jax.tree.map(lambda p: 0.9 * p, head))


@pytest.mark.parametrize("make", [one_cycle_adamw, one_cycle_sgd])
def test_a_frozen_group_stays_and_keeps_no_moments(make):
    tx = make(10, (None, 0.1), labels=two_groups, weight_decay=0.1)
    params, grads = make_params(), make_grads(5)
    trained = train(tx, params, grads)
    jax.tree.map(np.testing.assert_array_equal, trained["body"], params["body"])
    assert not np.array_equal(trained["head"]["kernel"], params["head"]["kernel"])
    assert {leaf.shape for leaf in jax.tree.leaves(tx.init(params))} == {(), (4, 2), (2,)}
    alone = train(
        make(10, 0.1, weight_decay=0.1), {"head": params["head"]}, [{"head": g["head"]} for g in grads]
    )
    assert_close(trained["head"], alone["head"], rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: one_cycle_adamw(20, 0.1), lambda: one_cycle_sgd(20, 0.1), lambda: rmsprop(0.02)]
)
@pytest.mark.parametrize("tree", ["dict", "module", "flax"])
def test_a_scan_over_any_tree_after_a_clip(make, tree):
    if tree == "flax":
        module = nn.Dense(1)
        params = module.init(jax.random.key(0), jnp.ones((1, 2)))
        predict = module.apply
    elif tree == "module":
        params = make_net().head
        predict = lambda p, x: x @ p.weight + p.bias
    else:
        params = {"weight": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        predict = lambda p, x: x @ p["weight"] + p["bias"]
    tx = optax.chain(optax.clip_by_global_norm(1.0), make())
    x = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    loss = lambda p: jnp.mean((predict(p, x)[:, 0] - x[:, 0] + 0.5) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=20))((params, tx.init(params)))
    assert losses[-1] < losses[0] / 3


def test_one_global_clip_before_and_one_per_group_within():
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    grads = [{"a": jnp.array([3.0]), "b": jnp.array([4.0])}]
    labels = lambda p: {"a": 0, "b": 1}
    sgd = hyper_sgd(hypers([1.0, 1.0], 0.0), labels=labels)
    before = train(optax.chain(optax.clip_by_global_norm(1.0), sgd), params, grads)
    assert_close(before, {"a": np.array([-0.6]), "b": np.array([-0.8])})
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    within = train(optax.multi_transform({0: clipped, 1: clipped}, labels), params, grads)
    assert_close(within, {"a": np.array([-1.0]), "b": np.array([-1.0])})


def test_bfloat16_parameters_keep_float32_moments():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_params())
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_grads(3))
    tx = one_cycle_adamw(3, 0.1)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(tx.init(params))} == {"float32", "int32"}
    trained = train(tx, params, grads)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype(jnp.bfloat16)}
    wide = train(tx, *jax.tree.map(lambda p: p.astype(jnp.float32), (params, grads)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05), trained, wide)


def test_float32_state_stays_float32_in_double_precision():
    with jax.enable_x64(True):
        tx = one_cycle_adamw(3, 0.1)
        state = tx.init(make_params())
        _, later = jax.jit(tx.update)(make_grads(1)[0], state, make_params())
        assert jax.tree.map(jnp.result_type, later) == jax.tree.map(jnp.result_type, state)
