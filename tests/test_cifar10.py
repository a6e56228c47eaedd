"""The CIFAR-10 experiment: its first layer, what trains at which rate, its data, a run that beats a linear model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_one_cycle import arrays

from experiments import cifar10, cifar10_net

TINY = cifar10.Config((8, 8), images=192, test_images=64, epochs=3, batch_size=32, lr=8.0)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    np.savez(path, class_names=["red", "green", "blue"], **arrays("train", 192, 0), **arrays("test", 64, 1))
    return path


def test_the_first_layer_whitens():
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(50, 16, 16, 3)).cumsum(1).cumsum(2) @ rng.normal(size=(3, 3))
    mean, std = smooth.mean((0, 1, 2)), smooth.std((0, 1, 2))
    kernel = cifar10_net.whitening(smooth, mean, std, epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
    x = jnp.asarray((smooth - mean) / std, jnp.float32)
    found = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    found = np.asarray(found[..., :12], np.float64).reshape(-1, 12)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(12), atol=2e-3)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 6), (6, 4)])
def test_convolutions_begin_as_the_identity(inputs, outputs):
    kernel = cifar10_net.identity(jax.random.key(0), (3, 3, inputs, outputs))
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, inputs))
    found = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    n = min(inputs, outputs)
    np.testing.assert_allclose(found[..., :n], x[..., :n], atol=1e-6)
    assert np.abs(found[..., n:]).min(initial=1) > 0


def test_data_are_the_images_and_whole_pixels_beside_them(file):
    data = cifar10.cifar(TINY, file)
    with np.load(file) as raw:
        np.testing.assert_array_equal(data.train.targets, raw["train_labels"])
        np.testing.assert_array_equal(data.valid.targets, raw["test_labels"])
    from experiments.one_cycle import read

    padded, _ = read(file, "test", slice(3))
    batch = data.valid.batch(np.arange(3))
    np.testing.assert_array_equal(data.prepare(batch)["image"], padded[:, 4:36, 4:36])
    np.testing.assert_array_equal(batch["image"], padded[:, 2:38, 2:38])
    shifted = np.asarray(data.augment(jax.random.key(0), batch)["image"])
    for image, stored in zip(shifted, batch["image"], strict=True):
        cuts = [stored[y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
        assert min(np.abs(image - cut[:, ::step]).max() for cut in cuts for step in (1, -1)) < 1e-3


def test_what_trains_and_how_fast(file):
    learn = cifar10.learner(TINY, cifar10.cifar(TINY, file), seed=0)
    before = jax.device_get(learn.state.params)
    assert cifar10.rates(TINY) == (0.0, 64 * 0.25, 0.25, 0.25)
    learn.fit(1, cifar10.rates(TINY))
    after = jax.device_get(learn.state.params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)["body"]
    assert moved["stem"] == {"kernel": False}
    for name in ("group0", "group1"):
        for layer, parts in moved[name].items():
            assert parts == ({"scale": False, "bias": True} if layer.startswith("norm") else {"kernel": True})
    np.testing.assert_allclose(np.array(learn.history.lrs)[0], cifar10.rates(TINY))


def test_a_linear_model_of_pixels(file):
    data = cifar10.cifar(TINY, file)
    assert cifar10.linear_baseline(data) > 0.95  # the sums of the channels tell the classes


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run(file, tmp_path):
    result = cifar10.run(TINY, file, 1, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["accuracy"] > 0.8 and result["linear"] > 0.95
    assert len(result["runs"][0]["accuracies"]) == 3 and result["seconds"] > 0
    assert (tmp_path / "confusion.png").exists() and (tmp_path / "accuracy.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_real_images_are_told_better_than_by_a_linear_model(outside_data, tmp_path):
    path = outside_data("cifar10.npz")
    config = dataclasses.replace(cifar10.DEFAULT, widths=(16, 32, 32), images=4000, test_images=1000, epochs=5)
    result = cifar10.run(config, path, 1, tmp_path)
    assert result["accuracy"] > result["linear"] + 0.08
    assert result["accuracy_tta"] > result["accuracy"] - 0.02
