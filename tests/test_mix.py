"""MixUp and CutMix: what is blended, in which shares, and that the target says so."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy import stats
from small import data, learner

from jaxfast.augment import image_augment
from jaxfast.losses import cross_entropy
from jaxfast.mix import Mixup, compose, cutmix, mixup, unmixed

KEY = jax.random.key(7)


def batch(n=64, size=12, classes=5, dtype=np.float32, seed=0):
    """Every image is a constant of its own, 3 i + 1."""
    rng = np.random.default_rng(seed)
    images = np.broadcast_to((3 * np.arange(n) + 1)[:, None, None, None], (n, size, size, 3)).astype(dtype)
    return {"image": images, "target": rng.integers(0, classes, n).astype(np.int32), "other": np.arange(n)}


def one_hot(labels, classes=5):
    return np.eye(classes, dtype=np.float32)[labels]


def before(values):
    return np.roll(values, 1, axis=0)


def mixed(transform, items, key=KEY):
    return jax.tree.map(np.asarray, jax.jit(transform)(key, items))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_mixup_blends_images_and_labels_alike(dtype):
    items = batch(dtype=dtype)
    found = mixed(mixup(5), items)
    assert found["image"].dtype == found["target"].dtype == np.float32
    own, other = items["image"][:, 0, 0, 0].astype(float), before(items["image"])[:, 0, 0, 0].astype(float)
    share = (found["image"][:, 0, 0, 0] - other) / (own - other)
    assert (share >= 0.5 - 1e-4).all() and (share <= 1 + 1e-4).all() and len(np.unique(share.round(3))) > 20
    blended = share[:, None] * one_hot(items["target"]) + (1 - share[:, None]) * before(one_hot(items["target"]))
    np.testing.assert_allclose(found["target"], blended, atol=1e-3)
    np.testing.assert_allclose(found["target"].sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found["other"], items["other"])
    assert np.ptp(found["image"], axis=(1, 2, 3)).max() < 1e-4


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_shares_are_those_of_the_larger_half_of_beta(alpha):
    items = {"image": np.arange(4000, dtype=np.float32)[:, None] % 2, "target": np.zeros(4000, np.float32)}
    share = mixed(mixup(alpha=alpha), items)["image"][:, 0]
    share = np.where(np.arange(4000) % 2, share, 1 - share)  # the images are 0, 1, 0, 1, ...
    larger = lambda x: 2 * stats.beta.cdf(x, alpha, alpha) - 1
    assert stats.kstest(share, larger).pvalue > 1e-3


def test_mixup_of_rows_numbers_and_masks():
    items = batch() | {"target": np.random.default_rng(0).random((64, 5)).round().astype(np.float32)}
    found = mixed(mixup(), items)
    again = mixed(mixup(), items | {"target": items["image"][:, 0, 0, 0]})
    share = (again["target"] - before(items["image"])[:, 0, 0, 0]) / (items["image"] - before(items["image"]))[
        :, 0, 0, 0
    ]
    expected = share[:, None] * items["target"] + (1 - share[:, None]) * before(items["target"])
    np.testing.assert_allclose(found["target"], expected, atol=1e-4)
    masks = batch() | {"target": np.random.default_rng(0).integers(0, 5, (64, 12, 12))}
    blended = mixed(mixup(5), masks)["target"]
    assert blended.shape == (64, 12, 12, 5)
    np.testing.assert_allclose(blended.sum(-1), 1, rtol=1e-5)
    table = {"features": items["image"][:, 0, 0], "target": items["target"]}
    np.testing.assert_allclose(mixed(mixup(entry="features"), table)["target"], expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area(alpha, dtype):
    items = batch(dtype=dtype)
    found = mixed(cutmix(5, alpha), items)
    assert found["image"].dtype == dtype
    pasted = (found["image"] == before(items["image"])).all(-1)
    np.testing.assert_array_equal(pasted, ~(found["image"] == items["image"]).all(-1))
    for mask in pasted:  # a filled rectangle
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns)
        for line in (rows, columns):
            assert (np.diff(np.flatnonzero(line)) == 1).all()
    share = 1 - pasted.mean((1, 2))
    assert len(np.unique(share)) > 10
    expected = share[:, None] * one_hot(items["target"]) + (1 - share[:, None]) * before(one_hot(items["target"]))
    np.testing.assert_allclose(found["target"], expected, atol=1e-6)


def test_boxes_have_the_size_and_place_of_the_paper():
    """Before the border cuts them: sides are sqrt(1 - share) of the image's; centres are uniform."""
    size, n = 32, 3000
    items = {
        "image": np.broadcast_to(np.arange(n)[:, None, None, None], (n, size, size, 1)).astype(np.int32),
        "target": np.arange(n, dtype=np.float32),
    }
    found = mixed(cutmix(), items)
    pasted = (found["image"] != items["image"])[..., 0]
    rng = np.random.default_rng(0)
    half = np.round(size * np.sqrt(rng.random(n))) / 2  # 1 - Beta(1, 1) is uniform
    reference = []
    for _ in range(2):
        centre = rng.integers(0, size, n)
        reference.append(np.minimum(centre + half, size) - np.maximum(centre - half, 0))
    area = reference[0] * reference[1] / size**2
    assert pasted.mean() == pytest.approx(area.mean(), abs=0.02)
    assert np.std(pasted.mean((1, 2))) == pytest.approx(area.std(), abs=0.02)
    density = pasted.mean(0)
    np.testing.assert_allclose(density, density[::-1], atol=0.06)
    np.testing.assert_allclose(density, density.T, atol=0.06)


def test_keys():
    items = batch()
    for transform in (mixup(5), cutmix(5)):
        one, same, other = (mixed(transform, items, jax.random.key(k))["target"] for k in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert not np.allclose(one, other)


def test_compose():
    items = batch(dtype=np.uint8)

    def add(key, batch):
        return {**batch, "image": batch["image"] + jax.random.uniform(key, (64, 1, 1, 1))}

    chain = compose(None, add, add, mixup(5))
    found = mixed(chain, items)
    expected = items
    for i, transform in enumerate((add, add, mixup(5))):
        expected = transform(jax.random.fold_in(KEY, i), expected)
    np.testing.assert_allclose(found["image"], expected["image"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["target"], expected["target"], rtol=1e-4, atol=1e-5)
    assert mixed(compose(), items)["image"].dtype == np.uint8


def test_unmixed():
    augment = image_augment()
    assert unmixed(None) is unmixed(mixup(3)) is unmixed(cutmix(3)) is unmixed(compose(mixup(3))) is None
    assert unmixed(augment) is augment
    assert unmixed(compose(augment, mixup(3), cutmix(3))) == compose(augment)
    assert unmixed(compose(compose(augment, mixup(3)), cutmix(3))) == compose(compose(augment))
    assert mixup(3) == Mixup(3, 0.4, "image")


def test_rows_stay_on_their_devices():
    """Eight devices: one row crosses each border, no device gathers the batch."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    items = batch()
    for transform in (mixup(5), cutmix(5)):
        program = jax.jit(transform, in_shardings=(whole, split), out_shardings=split)
        text = program.lower(KEY, items).compile().as_text()
        assert "all-gather" not in text
        moved = re.findall(r"= f32\[(\d+),12,12,3\]\S* collective-permute\(", text)
        assert moved and set(moved) == {"1"}
        np.testing.assert_allclose(program(KEY, items)["target"], mixed(transform, items)["target"], atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: mixup(5, alpha=0), "alpha is 0: give a number above 0"),
        (lambda: cutmix(5, alpha=-1), "alpha is -1: give a number above 0"),
        (lambda: mixup()(KEY, batch()), "MixUp turns labels into distributions.*how many classes"),
        (lambda: cutmix()(KEY, batch()), "CutMix turns labels into distributions.*how many classes"),
        (lambda: mixup(5, entry="features")(KEY, batch()), r"MixUp mixes batch\['features'\], the batch has \['image'"),
        (
            lambda: cutmix(5)(KEY, batch() | {"target": np.zeros((64, 12, 12), np.int32)}),
            r"a label or a row per image.*\(64, 12, 12\): use mixup",
        ),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_training_with_mixing_and_label_smoothing():
    task = data(augment=False)
    learn = learner(
        dataclasses.replace(task, augment=compose(task.augment, mixup(3), cutmix())),
        loss=functools.partial(cross_entropy, label_smoothing=0.1),
    )
    learn.fit_one_cycle(4, 1e-2)
    assert learn.history.epochs[-1]["accuracy"] > 0.8


def test_the_loss_of_a_mixture_is_the_mixture_of_losses():
    """Zhang et al.: cross entropy is linear in the target."""
    items = batch()
    target = mixed(mixup(5), items)["target"]
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(64, 5)), jnp.float32)
    one, two = cross_entropy(logits, items["target"]), cross_entropy(logits, before(items["target"]))
    share = mixed(mixup(), items | {"target": np.arange(64, dtype=np.float32) % 2})["target"]
    share = np.where(np.arange(64) % 2, share, 1 - share)
    np.testing.assert_allclose(cross_entropy(logits, target), share * one + (1 - share) * two, rtol=1e-4)
