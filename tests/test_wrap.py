"""Clipping, accumulation and averaging around an optimizer, against the same by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import learner

from jaxfast.optim import accumulated, averaged, averages, clipped, hyper_adamw, hyper_sgd

HYPERS = {"lr": jnp.array([0.1]), "momentum": jnp.float32(0.0), "weight_decay": jnp.float32(0.0)}
PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}
GRADS = [{"a": jnp.array([3.0 * i, 0.0]), "b": jnp.array([[4.0 * i]])} for i in (1.0, 2.0, 3.0, 4.0)]


def play(optimizer, grads=GRADS):
    params, state, seen = PARAMS, optimizer(HYPERS).init(PARAMS), []
    for g in grads:
        updates, state = jax.jit(optimizer(HYPERS).update)(g, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(jax.tree.map(np.asarray, params))
    return seen, state


def test_clipping_takes_the_norm_of_everything():
    # |g| is 5, 10, ...: each is scaled to norm 2, so every step moves by 0.1 * 2 in the direction (3, 0, 4) / 5
    seen, _ = play(clipped(hyper_sgd, 2.0))
    for i, params in enumerate(seen, 1):
        np.testing.assert_allclose(params["a"], [1 - 0.12 * i, 2.0], rtol=1e-5)
        np.testing.assert_allclose(params["b"], [[3 - 0.16 * i]], rtol=1e-5)


def test_accumulation_applies_the_mean():
    seen, _ = play(accumulated(hyper_sgd, 2))
    np.testing.assert_array_equal(seen[0]["a"], PARAMS["a"])
    np.testing.assert_allclose(seen[1]["a"], [1 - 0.1 * 4.5, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(seen[2]["a"], seen[1]["a"])
    np.testing.assert_allclose(seen[3]["a"], [1 - 0.1 * (4.5 + 10.5), 2.0], rtol=1e-6)


def test_averages():
    seen, state = play(averaged(hyper_sgd, decay=0.5))
    average = np.array([1.0, 2.0])
    for t, params in enumerate(seen):
        keep = min(0.5, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * params["a"]
    np.testing.assert_allclose(averages(state)["a"], average, rtol=1e-6)
    plain, _ = play(hyper_sgd)
    np.testing.assert_array_equal(plain[-1]["a"], seen[-1]["a"])


def test_they_compose_in_a_learner():
    learn = learner(optimizer=averaged(clipped(hyper_adamw, 1.0), 0.9))
    learn.freeze()
    learn.fit(2, 1e-2)
    average = averages(learn.state.opt_state)
    trained, frozen = learn.trainable.split(learn.state.params)
    assert jax.tree.structure(average) == jax.tree.structure(trained)
    assert not np.array_equal(average["head"]["dense1"]["kernel"], trained["head"]["dense1"]["kernel"])
    learn.state = learn.state.replace(params=learn.trainable.merge(average, frozen))
    assert np.isfinite(learn.validate()["loss"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: clipped(hyper_sgd, 0), "max_norm must be positive, got 0"),
        (lambda: accumulated(hyper_sgd, 0), "steps must be at least 1, got 0"),
        (lambda: averaged(hyper_sgd, 1.0), "decay must be in 0..1, got 1.0"),
        (lambda: averages(hyper_sgd(HYPERS).init(PARAMS)), "the optimizer keeps no averages"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
