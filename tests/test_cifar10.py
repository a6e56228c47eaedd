"""The CIFAR-10 experiment: its first layer, what trains at which rate, its data, a run that beats a linear model."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_one_cycle import arrays

from experiments import airbench, cifar10, cifar10_net

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


def test_least_squares_are_the_same_with_fewer_images_than_pixels(file):
    few = cifar10.cifar(cifar10.Config(images=192, test_images=64, batch_size=32), file)
    x = few.prepare(few.train.batch(np.arange(192)))["image"].reshape(192, -1) / 127.5 - 1
    test = few.prepare(few.valid.batch(np.arange(64)))["image"].reshape(64, -1) / 127.5 - 1
    x, test = (np.concatenate([part, np.ones((len(part), 1))], 1) for part in (x, test))
    targets = np.eye(3)[few.train.targets]
    weights = np.linalg.solve(x.T @ x + 1e3 * np.eye(3073), x.T @ targets)
    expected = ((test @ weights).argmax(1) == few.valid.targets).mean()
    assert cifar10.linear_baseline(few, penalties=(1e3,)) == pytest.approx(expected)


@pytest.fixture
def command(file, monkeypatch, tmp_path):
    """The command in this process, on the file with few images: gives result.json."""
    monkeypatch.setattr(cifar10, "start", lambda: None)

    def run(*arguments):
        cifar10.main([*arguments, "--data", str(file.parent), "--out", str(tmp_path)])
        return json.loads((tmp_path / "result.json").read_text())

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--full", "--airbench"], "no card here"),
        (["--airbench"], "give --full too"),
        (["--full", "--small"], "not allowed with"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(command, arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(airbench, "refusal", lambda: "no card here")
    monkeypatch.setattr(cifar10, "run", lambda *_: pytest.fail("it works already"))
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.parametrize("theirs", [{"seconds": 4.0}, {"error": "out of memory"}])
def test_airbenchs_result_stands_beside_ours(theirs, command, file, monkeypatch, tmp_path):
    """It runs first, on the same file and as many seeds; where it fails, ours is kept and the command says so."""
    calls = []
    monkeypatch.setattr(airbench, "refusal", lambda: None)
    monkeypatch.setattr(airbench, "run", lambda path, seeds: calls.append((path, seeds)) or theirs)
    monkeypatch.setattr(cifar10, "run", lambda *given: calls.append(given) or {"runs": [], "airbench": given[-1]})
    if "error" in theirs:
        with pytest.raises(SystemExit, match="out of memory"):
            command("--full", "--airbench", "--seeds", "2")
    else:
        (tmp_path / "result.json").write_text("{}")
        command("--full", "--airbench", "--seeds", "2")
    assert calls == [(file, 2), (cifar10.FULL, file, 2, tmp_path, theirs)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_small_form(command, monkeypatch, tmp_path):
    monkeypatch.setattr(airbench, "refusal", lambda: "no card here")
    result = command("--small", "--airbench")
    assert result["airbench"] == {"error": "no card here"} and result["widths"] == list(cifar10.SMALL.widths)
    assert result["seconds_cold"] > result["seconds"] > 0 and result["seconds_tta"] > 0
    assert (tmp_path / "confusion.png").exists() and (tmp_path / "accuracy.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_what_is_timed_has_been_compiled(file):
    learn = cifar10.learner(TINY, cifar10.cifar(TINY, file), 0)
    before = jax.device_get(learn.state.params)
    cifar10.compile_first(TINY, learn)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(learn.state.params))
    compiled = []
    listener = lambda name, _, fun_name="", **__: compiled.append(fun_name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        learn.fit_one_cycle(1, cifar10.rates(TINY))
        learn.tta(crops=10)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert set(compiled) <= {"jit(_values)"}  # the schedule's rates, before an epoch's clock starts


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
