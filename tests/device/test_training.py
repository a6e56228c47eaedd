"""Training on the device: a step of each precision beside the CPU's, and chunks and searches to the bit."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import arrays, data

from jaxfast import losses, optim, precision, training
from jaxfast.data import loader
from jaxfast.mesh import data_mesh, replicated
from jaxfast.models import ClassifierHead, ImageClassifier
from jaxfast.models.resnet import BasicBlock, ResNet

from .parity import accelerator, apart, assert_same_bits, host

BATCH, SIZE = 16, 12
NET = ImageClassifier(
    ResNet((1,), BasicBlock, width=8), ClassifierHead(3, hidden=()), mean=(127.0,) * 3, std=(64.0,) * 3
)


def example():
    images, labels = arrays(BATCH, SIZE)
    return {"image": images, "target": labels.astype(np.int32)}


def hypers(lr):
    return {"lr": np.full(1, lr, np.float32), "momentum": np.float32(0.9), "weight_decay": np.float32(0.01)}


@cache
def fresh(kind, optimizer, device):
    """A training step that computes in `kind`, not compiled, and a state for it on `device`."""
    net = precision.cast_module(NET, precision.PRECISIONS[kind].dtype)
    images = [np.zeros((1, SIZE, SIZE, 3), np.uint8)]
    state = training.create_state(net, images, optimizer, mesh=data_mesh([device]))
    part = training.trainable(state.params)
    return training.make_step(net, losses.cross_entropy, optimizer, part), state


# The parameters have a norm of 9; SGD at a rate of 1 moves them by 10, AdamW at .01 by .4. On the CPU
# bf16 ends .002 away from fp32.
STEPS = {
    "SGD in fp32": ("fp32", optim.hyper_sgd, 1.0, 1e-4),
    "AdamW in fp32": ("fp32", optim.hyper_adamw, 1e-2, 1e-4),
    "SGD in bf16": ("bf16", optim.hyper_sgd, 0.2, 3e-2),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_equals_the_step_on_the_cpu(name):
    kind, optimizer, lr, tolerance = STEPS[name]
    step, state = fresh(kind, optimizer, host())
    results = []
    for device in (accelerator(), host()):
        new, metrics = jax.jit(step)(*jax.device_put((state, example(), hypers(lr)), device))
        assert metrics["loss"].devices() == {device} and bool(metrics["finite"])
        results.append((jax.device_get(new.variables), float(metrics["loss"])))
    (ours, loss), (theirs, expected) = results
    assert loss == pytest.approx(expected, rel=tolerance)
    for kind in ("params", "batch_stats"):
        assert apart(theirs[kind], state.variables[kind]) > 3 * tolerance  # so that a step not taken is seen
        assert apart(ours[kind], theirs[kind]) < tolerance


def test_fp16_trains_and_its_loss_scale_grows():
    step, state = fresh("fp16", optim.hyper_adamw, accelerator())
    step, batch, rates = jax.jit(step), example(), hypers(1e-2)
    scaled = state.replace(loss_scale=precision.LossScale.create(2.0**10, period=4))
    seen = []
    for _ in range(8):
        scaled, metrics = step(scaled, batch, rates)
        seen.append((float(metrics["loss"]), float(scaled.loss_scale.scale), bool(metrics["finite"])))
    values, scales, finite = zip(*seen, strict=True)
    assert scales == (*[2.0**10] * 3, *[2.0**11] * 4, 2.0**12)
    assert all(finite) and np.isfinite(values).all() and values[-1] < values[0]
    assert all(leaf.dtype == jnp.float32 and bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(scaled.params))


def test_an_overflow_in_fp16_halves_the_loss_scale_and_changes_nothing_else():
    """At 2**24 the scaled gradients exceed 65504, fp16's largest number; halving finds a scale that fits."""
    step, state = fresh("fp16", optim.hyper_adamw, accelerator())
    step = jax.jit(step)
    state = state.replace(loss_scale=precision.LossScale.create(2.0**24, period=4))
    skipped = 0
    while True:
        new, metrics = step(state, example(), hypers(1e-2))
        assert bool(metrics["finite"]) and np.isfinite(float(metrics["loss"]))
        if float(new.loss_scale.scale) == float(state.loss_scale.scale):
            break
        assert float(new.loss_scale.scale) == float(state.loss_scale.scale) / 2
        assert_same_bits((new.variables, new.opt_state), (state.variables, state.opt_state))
        state, skipped = new, skipped + 1
        assert skipped < 24
    assert skipped > 0
    assert apart(new.params, state.params) > 1e-3


@cache
def run():
    """(step with augmentation, state, its compiled chunk, the data on the device) of the small task, in fp32."""
    task, mesh = data(BATCH, n=100, size=SIZE, presize=16), data_mesh([accelerator()])
    _, state = fresh("fp32", optim.hyper_adamw, accelerator())
    part = training.trainable(state.params)
    step = training.make_step(NET, losses.cross_entropy, optim.hyper_adamw, part, augment=task.augment)
    chunk = training.make_chunk(step, BATCH, mesh, resident=True)
    return step, jax.device_put(state, replicated(mesh)), chunk, loader.Resident.put(task.train, BATCH, mesh)


def test_a_chunk_equals_its_single_steps():
    """The steps cross the end of an epoch. One program gives the same bits however its steps are dispatched.

    A step that is compiled on its own is fused in another way, and rounds in another way.
    """
    step, state, chunk, feed = run()
    steps = 7
    assert steps > feed.examples // BATCH
    rows = training.hyper_rows(steps, [lambda i: 1e-3 * (i + 1)], lambda i: 0.9, lambda i: 0.01)
    results = []
    for pace in (training.Pace(1e9, steps), training.Pace(0.0, 1)):
        pieces = list(training.run(jax.tree.map(jnp.copy, state), chunk, feed, rows, pace))
        results.append((pieces[-1].state, np.concatenate([piece.losses for piece in pieces])))
        assert len(pieces) == (2 if pace.seconds else steps)
    (together, losses_together), (single, losses_single) = results
    assert_same_bits(losses_single, losses_together)
    assert_same_bits(single, together)

    alone, current, seen = jax.jit(step), state, []
    for i in range(steps):
        epoch, within = divmod(i, feed.examples // BATCH)
        index = training.epoch_order(state.key, epoch, feed.examples)[within * BATCH :][:BATCH]
        batch = {name: values[index] for name, values in feed.data.items()}
        current, metrics = alone(current, batch, {name: values[i] for name, values in rows.items()})
        seen.append(float(metrics["loss"]))
    np.testing.assert_allclose(seen, losses_together, rtol=1e-3)
    assert apart(current.params, together.params) < 1e-3 < 1e-2 < apart(together.params, state.params)


def test_a_search_for_the_rate_leaves_the_state_as_it_is():
    _, state, chunk, feed = run()
    before = jax.tree.map(jnp.copy, state)
    found = training.lr_find(state, chunk, feed, steps=20)
    assert len(found.losses) > 5 and np.isfinite(found.losses).all()
    assert 1e-7 <= found.valley <= 10
    assert_same_bits(state, before)
