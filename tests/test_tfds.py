"""TensorFlow Datasets without TensorFlow: a small data set of our own, written, read, trained on and prepared."""

import io
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import small
import tensorflow_datasets as tfds
from PIL import Image

from jaxfast import vision
from jaxfast.data import loader, presize, tfds_prepare
from jaxfast.data.tfds_images import TfdsImages
from jaxfast.mesh import data_mesh
from jaxfast.models.resnet import MEAN, STD, BasicBlock, ResNet

COLOURS = ["red", "green", "blue"]
IMAGES, LABELS = small.arrays(120)
N_TRAIN = 96
PICTURES = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=COLOURS)}


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _write(root, name, features, splits, *, shard=40, version="1.0.0"):
    """A data set as tfds's own writer leaves it, in files of at most `shard` examples."""
    folder = root / name / version
    folder.mkdir(parents=True)
    where = tfds.core.DatasetIdentity(
        name=name.split("/")[0], version=tfds.core.Version(version), data_dir=str(folder), module_name="tests"
    )
    info = tfds.core.DatasetInfo(builder=where, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, shard, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()
    return folder


def _examples(start, stop, label=lambda i: int(LABELS[i])):
    return [{"image": _png(IMAGES[i]), "label": label(i)} for i in range(start, stop)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data directory with the set "colours": 96 training and 24 test images in four files, and a few others."""
    root = tmp_path_factory.mktemp("tfds")
    features = PICTURES | {"file": tfds.features.Text(), "hue": tfds.features.Scalar(np.float32)}
    extra = [example | {"file": f"{i}.png", "hue": 0.5} for i, example in enumerate(_examples(0, len(IMAGES)))]
    _write(root, "colours", features, {"train": extra[:N_TRAIN], "test": extra[N_TRAIN:]})
    text = {"text": tfds.features.Text(), "label": PICTURES["label"]}
    _write(root, "reviews", text, {"train": [{"text": "fine", "label": 0}]})
    _write(root, "unlabelled", PICTURES, {"train": _examples(0, 9), "test": _examples(9, 12, lambda i: -1)})
    depth = {"image": tfds.features.Image(shape=(None, None, 1), dtype=np.float32), "label": PICTURES["label"]}
    _write(root, "depths", depth, {})
    _write(root, "points", {"image": PICTURES["image"], "where": tfds.features.BBoxFeature()}, {})
    for name in ("seasons/summer", "seasons/winter"):
        _write(root, name, PICTURES, {"train": _examples(0, 9)})
    return root


@pytest.fixture
def colours(root, tmp_path):
    """A copy of "colours" to damage."""
    shutil.copytree(root / "colours", tmp_path / "colours")
    return tmp_path / "colours" / "1.0.0"


def _data(root, name="colours", **options):
    return vision.from_tfds(name, **{"data_dir": root, "size": 16, "batch_size": 8} | options)


def test_splits_give_the_pixels_that_were_written(root):
    data = _data(root, valid="test")
    assert data.classes == tuple(COLOURS) and data.task == "single_label"
    assert (len(data.train), len(data.valid)) == (96, 24)
    for part, start in ((data.train, 0), (data.valid, N_TRAIN)):
        index = np.random.default_rng(0).permutation(len(part))
        batch = part.batch(index)
        np.testing.assert_array_equal(batch["image"], IMAGES[start + index])
        np.testing.assert_array_equal(batch["target"], LABELS[start + index])
    np.testing.assert_array_equal(data.valid[5]["image"], IMAGES[N_TRAIN + 5])
    assert data.label(data.valid[5]["target"]) == COLOURS[LABELS[N_TRAIN + 5]]


@pytest.mark.parametrize(
    "split, valid, train, held_out",
    [
        ("train[:75%]", "train[75%:]", range(72), range(72, 96)),
        ("train[50:]", "test[:10]", range(50, 96), range(96, 106)),
        ("train+test[:4]", "test[4:]", range(100), range(100, 120)),
        ("train", [3, 50], [i for i in range(96) if i not in (3, 50)], [3, 50]),
    ],
)
def test_parts_of_splits(root, split, valid, train, held_out):
    data = _data(root, split=split, valid=valid)
    for part, rows in ((data.train, train), (data.valid, held_out)):
        np.testing.assert_array_equal(part.batch(np.arange(len(part)))["image"], IMAGES[list(rows)])


def test_a_share_of_the_training_split_leaves_the_test_split_alone(root):
    data = _data(root, valid=0.25)
    np.testing.assert_array_equal(np.bincount(data.valid.targets), [8, 8, 8])
    index = np.sort(np.concatenate([data.train.index, data.valid.index]))
    np.testing.assert_array_equal(index, np.arange(N_TRAIN))
    np.testing.assert_array_equal(data.valid.batch(np.arange(24))["image"], IMAGES[data.valid.index])


def test_images_are_read_when_asked_for_and_resized_on_the_host(root, monkeypatch):
    read, get = [], TfdsImages.__getitem__
    monkeypatch.setattr(TfdsImages, "__getitem__", lambda images, i: read.append(get(images, i)) or read[-1])
    data = _data(root, valid="test", size=8, presize=(12, 12))
    assert read == []
    batch = data.train.batch([7, 2, 90])
    assert sorted(read) == sorted(_png(IMAGES[i]) for i in (7, 2, 90))
    np.testing.assert_array_equal(batch["image"], [presize(IMAGES[i], 12) for i in (7, 2, 90)])


def test_a_data_set_goes_to_another_process(root):
    data = _data(root, valid="test")
    batch = pickle.loads(pickle.dumps(data.valid)).batch([3, 1])
    np.testing.assert_array_equal(batch["image"], IMAGES[[N_TRAIN + 3, N_TRAIN + 1]])


@pytest.mark.parametrize("name", ["colours", "colours:1.0.0", "{root}/colours", "{root}/colours/1.0.0"])
def test_names_of_a_data_set(root, name):
    assert len(_data(root, name.format(root=root)).train) == 77


def test_where_data_sets_are(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert len(_data(None).train) == len(_data(None, Path("colours")).train) == 77
    assert len(_data(None, "seasons/winter", batch_size=2).train) == 6
    assert len(_data(None, "seasons/summer:1.0.0", batch_size=2).valid) == 3
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tensorflow_datasets").symlink_to(root)
    assert len(_data(None).train) == 77
    monkeypatch.chdir(root)
    assert len(_data(tmp_path, "colours/1.0.0").train) == 77


def test_the_newest_version_unless_said(tmp_path):
    for version, n in (("1.10.0", 30), ("1.9.0", 60), ("incomplete.AB_2.0.0", 1)):
        name = version.removeprefix("incomplete.AB_")
        folder = _write(tmp_path, "colours", PICTURES, {"train": _examples(0, n)}, version=name)
        folder.rename(folder.with_name(version))
    count = lambda name: len(_data(tmp_path, name, valid=[0]).train) + 1
    assert count("colours") == 30 and count("colours:1.9.0") == 60


def test_training_learns_the_colours_streamed_as_resident(root, monkeypatch):
    tiny = vision.Architecture(lambda: ResNet((1, 1), BasicBlock, width=8), MEAN, STD)
    monkeypatch.setitem(vision.ARCHITECTURES, "tiny", tiny)
    data = _data(root, valid="test", batch_size=16, augment=False)
    mesh = data_mesh()
    resident, streamed = loader.Resident.put(data.train, 16, mesh), loader.Streamed(data.train, 16, mesh)
    order, epoch = resident.order(jax.random.key(1), 0), streamed.order(jax.random.key(1), 0)
    for start in range(6):
        a, b = resident.piece(order, start, 1), streamed.piece(epoch, start, 1)
        rows = np.asarray(a.order)[a.start * 16 :][:16]
        for name in ("image", "target"):
            assert np.asarray(a.data[name])[rows].tobytes() == np.asarray(b.data[name]).tobytes()

    learn = vision.learner(
        data, "tiny", pretrained=False, hidden=(16,), dropout=0.0, resident=False, norm_groups=1, quiet=True
    )
    before = learn.validate()["accuracy"]
    learn.fit_one_cycle(12, 1e-2)
    assert before < 0.6 and learn.validate()["accuracy"] == 1.0
    assert learn.predict(IMAGES[N_TRAIN]).label == COLOURS[LABELS[N_TRAIN]]


POISON = "raise SystemExit('tensorflow was imported')\n"


def test_reading_imports_no_tensorflow_even_where_it_is_installed(root, tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(POISON)
    code = f"""
import sys
from jaxfast import vision
assert "tensorflow_datasets" not in sys.modules
data = vision.from_tfds("colours", data_dir={str(root)!r}, valid="test", size=16, batch_size=8)
print(data.train.batch(range(9))["image"].sum(), "tensorflow" in sys.modules)
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout.split() == [str(IMAGES[:9].sum()), "False"], done.stderr


COMMAND = "python -m jaxfast.data.tfds_prepare"


@pytest.mark.parametrize(
    "name, options, error, message",
    [
        (
            "colors",
            {},
            FileNotFoundError,
            "no data set colors in {root}, which has colours, depths, points, reviews, seasons, unlabelled: "
            f"prepare it with {COMMAND} colors --data-dir {{root}}; did you mean 'colours'?",
        ),
        (
            "colours:2.0.0",
            {},
            FileNotFoundError,
            "no version 2.0.0 in {root}/colours, which has 1.0.0: give one of them",
        ),
        (
            "colours",
            {"data_dir": "no where"},
            FileNotFoundError,
            f"no data set colours in no where: prepare it with {COMMAND} colours --data-dir 'no where'",
        ),
        (
            "colours",
            {"data_dir": "gs://bucket/tfds"},
            ValueError,
            "gs://bucket/tfds is a URL, and data sets are read from a folder: mount it (gcsfuse) or copy it",
        ),
        (
            "seasons",
            {},
            ValueError,
            "seasons names 2 data sets: say which, seasons/... with one of summer, winter",
        ),
        (
            "colours",
            {"image": "img"},
            ValueError,
            "feature 'img' of colours does not exist: give image='image'; its features are "
            "file (Text), hue (Scalar), image (Image), label (ClassLabel)",
        ),
        (
            "colours",
            {"label": "hue"},
            ValueError,
            "feature 'hue' of colours does not hold class labels: give label='label'; its features are "
            "file (Text), hue (Scalar), image (Image), label (ClassLabel)",
        ),
        (
            "reviews",
            {},
            ValueError,
            "reviews has no images of 8 or 16 bits: its features are label (ClassLabel), text (Text); "
            "use another data set",
        ),
        (
            "depths",
            {},
            ValueError,
            "depths has no images of 8 or 16 bits: its features are image (Image), label (ClassLabel); "
            "use another data set",
        ),
        (
            "points",
            {},
            ValueError,
            "points has no class labels: its features are image (Image), where (BBoxFeature); use another data set",
        ),
        (
            "colours",
            {"split": "trian"},
            ValueError,
            "split='trian' is no split of colours, which has train (96 examples), test (24 examples): "
            "give one of them or a part such as 'train[:80%]'; did you mean 'train'?",
        ),
        (
            "colours",
            {"valid": "validation"},
            ValueError,
            "valid='validation' is no split of colours, which has train (96 examples), test (24 examples): "
            "give one of them or a part such as 'train[:80%]'",
        ),
        (
            "colours",
            {"valid": "train[200:]"},
            ValueError,
            "valid='train[200:]' is no split of colours, which has train (96 examples), test (24 examples): "
            "give one of them or a part such as 'train[:80%]'; did you mean 'train'?",
        ),
        (
            "colours",
            {"valid": "test[9:9]"},
            ValueError,
            "valid='test[9:9]' holds no example; colours has train (96 examples), test (24 examples): "
            "give a larger part",
        ),
        (
            "colours",
            {"valid": "train[80%:]"},
            ValueError,
            "split='train' and valid='train[80%:]' have 19 examples in common: give other splits, or parts such as "
            "'train[:80%]' and 'train[80%:]'",
        ),
        (
            "unlabelled",
            {"valid": "test"},
            ValueError,
            "3 of 12 examples of 'train' and 'test' have no label (-1), as test splits often do: give other splits",
        ),
        (
            "colours",
            {"batch_size": 100, "valid": "test"},
            ValueError,
            "batch_size=100 is more than the 96 training images: give batch_size=96 or less",
        ),
    ],
)
def test_errors(root, name, options, error, message):
    with pytest.raises(error) as caught:
        _data(root, name, **options)
    assert str(caught.value) == message.format(root=root)


def _as_tf_records(folder, n=None):
    """The files of a data set in the framing of TFRecord (without the checksums), `n` bytes of each."""
    info = tfds.builder_from_directory(folder).info
    for split in info.splits.values():
        for path in split.filepaths:
            source = tfds.core.lazy_imports_utils.array_record_data_source.ArrayRecordDataSource([str(path)])
            framed = [len(source[i]).to_bytes(8, "little") + b"...." + source[i] + b"...." for i in range(len(source))]
            Path(str(path).replace("array_record", "tfrecord")).write_bytes(b"".join(framed)[:n])
            Path(path).unlink()
    text = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(text.replace('"array_record"', '"tfrecord"'))


def test_tf_records_are_refused_with_the_command_that_copies_them(colours, capsys):
    _as_tf_records(colours)
    with pytest.raises(ValueError) as caught:
        _data(colours.parents[1], valid="test")
    text = str(caught.value)
    assert text == (
        f"{colours} holds tfrecord files, which cannot be read in any order: write ArrayRecord files beside them "
        f"with {COMMAND} colours --data-dir {colours.parents[1]}"
    )
    assert tfds_prepare.main(text.split(COMMAND)[1].split()) == 0
    assert capsys.readouterr().out.strip() == str(colours)
    data = _data(colours.parents[1], valid="test")
    np.testing.assert_array_equal(data.train.batch(np.arange(96))["image"], IMAGES[:96])
    np.testing.assert_array_equal(data.valid.batch(np.arange(24))["target"], LABELS[96:])
    assert sum(path.name.count("tfrecord") for path in colours.iterdir()) == 4
    assert tfds_prepare.main(["colours", "--data-dir", str(colours.parents[1])]) == 0


def test_a_copy_that_breaks_off_is_not_taken_for_whole(colours, capsys):
    _as_tf_records(colours, n=-1)
    assert tfds_prepare.main([str(colours)]) == 2
    assert "is cut short: download it again\n" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds tfrecord files"):
        _data(colours.parents[1])


@pytest.mark.parametrize("damage", ["dataset_info.json", "features.json", "records", "file"])
def test_damaged_data_sets(colours, damage):
    record = next(colours.glob("*test*"))
    if damage == "file":
        record.unlink()
    else:
        file = record if damage == "records" else colours / damage
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        _data(colours.parents[1], valid="test")
    text = str(caught.value)
    what = {"records": f"the records of {colours} are damaged", "file": f"no file {record}"}
    json = f"dataset_info.json or features.json of {colours} is damaged"
    command = f"{COMMAND} colours --data-dir {colours.parents[1]}"
    assert text == f"{what.get(damage, json)}: remove the folder and run {command}"


class ToySquares(tfds.core.GeneratorBasedBuilder):
    """Three grey squares, prepared by tfds itself."""

    VERSION = tfds.core.Version("1.2.3")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(PICTURES))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            yield i, {"image": Image.fromarray(np.full((4, 4, 3), i, np.uint8)), "label": i % 3}


def test_preparing_writes_array_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tfds_prepare, "need", lambda name, **_: tfds if name == "tensorflow_datasets" else None)
    assert tfds_prepare.main(["toy_squares", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "toy_squares" / "1.2.3")
    data = _data(tmp_path, "toy_squares", size=4, batch_size=2, valid=[0])
    pixels = np.concatenate([part.batch(np.arange(len(part)))["image"] for part in (data.train, data.valid)])
    np.testing.assert_array_equal(np.sort(pixels[:, 0, 0, 0]), np.arange(12))
    assert tfds_prepare.main(["toy_sqares", "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"TensorFlow Datasets {tfds.__version__} has no data set 'toy_sqares'; did you mean 'toy_squares'?\n"
    )


def test_missing_extras_are_named(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert tfds_prepare.main(["mnist", "--data-dir", str(tmp_path)]) == 2
    line = "preparing data sets need tensorflow: pip install 'jaxfast[tfds-prepare]'\n"
    assert capsys.readouterr().err == line
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError) as caught:
        _data(root)
    assert str(caught.value) == "TensorFlow's data sets need tensorflow_datasets: pip install 'jaxfast[tfds]'"
