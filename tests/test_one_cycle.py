"""The one-cycle experiment in a tiny form: its data, its three schedules, the rule for the rates, what it writes."""

import dataclasses
import functools
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import one_cycle
from jaxfast.models.resnet import BasicBlock, ResNet

TINY = one_cycle.Config((1,), width=4, images=128, test_images=64, valid_images=64, epochs=4, batch_size=32)


def jpegs(images):
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), np.uint8), offsets


def arrays(split, n, seed):
    """Noise of three classes, each with one channel darkened, in the format of cifar10.npz."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 32, 32, 3)).astype(np.uint8), rng.integers(0, 3, n)
    images[np.arange(n), :, :, labels] //= 3
    stream, offsets = jpegs(images)
    return {f"{split}_jpeg": stream, f"{split}_offsets": offsets, f"{split}_labels": labels}


@pytest.fixture(scope="module")
def train_file(tmp_path_factory):
    """A file that holds training images only."""
    path = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    np.savez(path, class_names=["red", "green", "blue"], **arrays("train", 192, 0))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    np.savez(path, class_names=["red", "green", "blue"], **arrays("train", 192, 0), **arrays("test", 64, 1))
    return path


def test_images_are_read_by_rows_and_padded_by_reflection(file):
    images, labels = one_cycle.read(file, "train", slice(3, 7))
    with np.load(file) as raw:
        a, b = raw["train_offsets"][4:6]
        expected = np.asarray(Image.open(io.BytesIO(raw["train_jpeg"][a:b].tobytes())))
        np.testing.assert_array_equal(labels, raw["train_labels"][3:7])
    assert images.shape == (4, 40, 40, 3)
    np.testing.assert_array_equal(images[1, 4:36, 4:36], expected)
    np.testing.assert_array_equal(images[1, 0, 4:36], expected[4])  # 4 above row 0 lies row 4
    np.testing.assert_array_equal(images[1, 4:36, 39], expected[:, 27])


def test_the_search_never_sees_a_test_image(train_file):
    data = one_cycle.cifar(TINY, train_file, search=True)
    with np.load(train_file) as raw:
        labels = raw["train_labels"]
    np.testing.assert_array_equal(data.train.targets, labels[:128])
    np.testing.assert_array_equal(data.valid.targets, labels[-64:])


def test_a_search_over_all_images_still_holds_some_out(train_file):
    everything = dataclasses.replace(TINY, images=192)
    data = one_cycle.cifar(everything, train_file, search=True)
    assert (len(data.train), len(data.valid)) == (128, 64)


def test_a_run_is_measured_on_test_images(file):
    data = one_cycle.cifar(TINY, file, search=False)
    with np.load(file) as raw:
        np.testing.assert_array_equal(data.train.targets, raw["train_labels"][:128])
        np.testing.assert_array_equal(data.valid.targets, raw["test_labels"])
    assert data.classes == ("red", "green", "blue") and data.size == (32, 32)
    prepared = data.prepare(data.valid.batch(np.arange(2)))["image"]
    np.testing.assert_array_equal(prepared, one_cycle.read(file, "test", slice(2))[0][:, 4:36, 4:36])
    shifted = data.augment(jax.random.key(0), data.train.batch(np.arange(8)))["image"]
    assert shifted.shape == (8, 32, 32, 3)
    # whole pixels, so that nothing is blurred
    np.testing.assert_allclose(shifted, np.round(shifted), atol=1e-3)


@pytest.mark.parametrize("step, rate", [(0, 0.5), (3, 0.5), (4, 0.05), (5, 0.05), (6, 0.005), (7, 0.005)])
def test_step_decay(step, rate):
    assert one_cycle.step_decay(8, 0.5)(step) == pytest.approx(rate)


@pytest.fixture(scope="module")
def result(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    rates = {"constant": 0.02, "step decay": 0.05, "one cycle": 0.1}
    return one_cycle.run(TINY, file, rates, seeds=2, out=out), out


def test_the_three_schedules(file):
    data = one_cycle.cifar(TINY, file, search=False)
    seen = {name: one_cycle.train(TINY, data, name, 0.04, seed=0).history for name in one_cycle.SCHEDULES}
    rates = {name: np.array(history.lrs)[:, -1] for name, history in seen.items()}
    assert {len(history) for history in seen.values()} == {4} and {len(lrs) for lrs in rates.values()} == {16}
    np.testing.assert_allclose(rates["constant"], 0.04)
    np.testing.assert_allclose(rates["step decay"], [0.04] * 8 + [0.004] * 4 + [0.0004] * 4, rtol=1e-5)
    np.testing.assert_allclose(rates["one cycle"][[0, 4, 10]], [0.04 / 25, 0.04, 0.02], rtol=1e-3)
    np.testing.assert_allclose(seen["constant"].momentums + seen["step decay"].momentums, 0.9)
    np.testing.assert_allclose(np.array(seen["one cycle"].momentums)[[0, 4]], [0.95, 0.85], rtol=1e-5)


def test_what_a_run_gives(result):
    result, out = result
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "one_cycle.png").read_bytes().startswith(b"\x89PNG")
    for name in one_cycle.SCHEDULES:
        last = [run["accuracy"][-1] for run in result["curves"][name]]
        assert result["accuracy_of_seeds"][name] == last and len(set(last)) <= 2 == len(last)
        assert result["accuracy"][name] == pytest.approx(np.mean(last))
        assert all(len(run["valid_loss"]) == 4 for run in result["curves"][name])
    # the classes differ by a channel's brightness: guessing is right in a third
    assert max(result["accuracy"].values()) > 0.5
    assert result["seconds"] > 0 and result["width"] == 4


def test_the_search_takes_what_fails_for_nought(train_file, capsys):
    found = one_cycle.search(dataclasses.replace(TINY, epochs=1), train_file, grid=(0.05, 1e30))
    assert set(found) == set(one_cycle.SCHEDULES)
    for tried in found.values():
        assert tried[1e30] == 0 < tried[0.05] <= 1
    assert "step decay: {0.05:" in capsys.readouterr().out


def test_every_schedule_has_a_rate_of_the_grid():
    assert set(one_cycle.DEFAULT_RATES) == set(one_cycle.SCHEDULES)
    assert set(one_cycle.DEFAULT_RATES.values()) <= set(one_cycle.GRID)


FOUND = {"constant": {0.1: 0.5, 0.3: 0.4}, "step decay": {0.1: 0.4, 0.3: 0.5}, "one cycle": {0.1: 0.0, 0.3: 0.6}}


@pytest.mark.parametrize(
    ("arguments", "config", "grid", "seeds"),
    [
        ([], one_cycle.DEFAULT, None, 3),
        (["--search", "--seeds", "2"], one_cycle.DEFAULT, one_cycle.GRID, 2),
        (["--gpu"], one_cycle.GPU, one_cycle.TWO_RATES, 1),
        (["--full"], one_cycle.FULL, one_cycle.GRID, 3),
        (["--small"], one_cycle.SMALL, None, 1),
    ],
)
def test_what_each_form_runs(arguments, config, grid, seeds, train_file, monkeypatch, tmp_path):
    """Rates that are not given are searched for first, and those with the best held-out accuracies are run."""
    calls = []
    monkeypatch.setattr(one_cycle, "start", lambda: None)
    monkeypatch.setattr(one_cycle, "search", lambda *given: calls.append(given) or FOUND)
    monkeypatch.setattr(one_cycle, "run", lambda *given: calls.append(given) or {"accuracy": {}})
    one_cycle.main([*arguments, "--data", str(train_file.parent), "--out", str(tmp_path)])
    if grid is None:
        assert calls == [(config, train_file, one_cycle.DEFAULT_RATES, seeds, tmp_path, None)]
    else:
        rates = {"constant": 0.1, "step decay": 0.3, "one cycle": 0.3}
        assert calls == [(config, train_file, grid), (config, train_file, rates, seeds, tmp_path, FOUND)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_small_form(file, monkeypatch, tmp_path):
    monkeypatch.setattr(one_cycle, "start", lambda: None)
    one_cycle.main(["--small", "--data", str(file.parent), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["accuracy"]) == set(one_cycle.SCHEDULES) and result["images"] == one_cycle.SMALL.images
    assert (tmp_path / "one_cycle.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", [one_cycle.FULL, one_cycle.GPU])
def test_the_large_forms_but_narrow(form, file):
    narrow = dataclasses.replace(form, width=2, images=64, test_images=64, epochs=1, batch_size=32)
    learn = one_cycle.train(narrow, one_cycle.cifar(narrow, file, search=False), "one cycle", 0.1, seed=0)
    assert len(learn.history.losses) == 2 and np.isfinite(learn.history.losses).all()
    assert learn.module.body.stage_sizes == form.stage_sizes


def test_on_cifar10(outside_data):
    path = outside_data("cifar10.npz")
    config = dataclasses.replace(TINY, images=512, test_images=64, epochs=2)
    data = one_cycle.cifar(config, path, search=False)
    assert (len(data.train), len(data.valid), len(data.classes)) == (512, 64, 10)
    learn = one_cycle.train(config, data, "one cycle", 0.1, seed=0)
    losses = learn.history.losses
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.05


def test_a_small_stem_keeps_every_pixel():
    torch = pytest.importorskip("torch")
    body = ResNet((1, 1), BasicBlock, width=4, small_stem=True)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(body.init)(jax.random.key(0), images)
    outputs = jax.jit(functools.partial(body.apply, method="features"))(variables, images)
    assert [outputs[name].shape for name in body.block_names] == [(2, 32, 32, 4), (2, 32, 32, 4), (2, 16, 16, 8)]
    # Fresh statistics are 0 and 1, and the second norm of a fresh block is 0: the stem's output goes through unchanged.
    kernel = np.array(variables["params"]["stem"]["conv"]["kernel"])
    assert kernel.shape == (3, 3, 3, 4)
    expected = torch.nn.functional.conv2d(
        torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(3, 2, 0, 1)), padding=1
    )
    expected = torch.relu(expected / np.sqrt(1 + 1e-5)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(outputs["stem"], expected, atol=1e-4)
    np.testing.assert_allclose(outputs["layer1_0"], expected, atol=1e-4)
