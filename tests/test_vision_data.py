"""Data through the front doors: folders, arrays, frames, sources; what they refuse, and with which words."""

import dataclasses
import warnings
import zipfile

import jax
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxfast import vision
from jaxfast.augment import image_augment
from jaxfast.data import SkippedImages, decode, presize
from jaxfast.mix import compose, mixup


def _colour(i):
    """A picture of one colour, so that pixels tell which file was read."""
    return np.full((12, 16, 3), (i, 255 - i, 100), np.uint8)


def _folder(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_colour(i)).save(root / name)
    return root


def _names(data, part):
    return [part.path(i).as_posix() for i in range(len(part))]


@pytest.fixture
def folder(tmp_path):
    return _folder(tmp_path / "pets", [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(10)])


@pytest.fixture
def frame(folder):
    paths = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(10)]
    return pd.DataFrame({"path": paths, "label": [path[:3] for path in paths]})


def test_from_folder(folder):
    data = vision.from_folder(folder, size=8, batch_size=4)
    assert data.classes == ("cat", "dog") and data.n_out == 2 and data.task == "single_label"
    assert (len(data.train), len(data.valid)) == (16, 4) and data.inputs == ("image",)
    assert data.size == (8, 8) and data.channels == 3 and data.batch_size == 4 and data.prepare is None
    np.testing.assert_array_equal(np.bincount(data.valid.targets), [2, 2])
    assert not set(_names(data, data.train)) & set(_names(data, data.valid))
    for i in range(16):
        path = data.train.path(i)
        np.testing.assert_array_equal(data.train[i]["image"], presize(decode(path), 8))
        assert data.label(data.train[i]["target"]) == path.parent.name
    assert _names(data, data.valid) == _names(data, vision.from_folder(folder, size=8, batch_size=4).valid)
    other = vision.from_folder(folder, size=8, batch_size=4, seed=1, classes=["dog", "cat"], channels=1)
    assert _names(data, data.valid) != _names(data, other.valid)
    assert other.label(other.train[0]["target"]) == other.train.path(0).parent.name == "cat"
    assert other.train[0]["target"] == 1 and other.train[0]["image"].shape == (8, 8, 1)
    text = repr(data)
    assert text == (
        "ImageData: 16 training and 4 validation images, 2 classes (cat, dog)\n"
        "  8x8 pixels, 3 channels, batches of 4, one label each"
    )


@pytest.mark.parametrize(
    "valid, held_out",
    [("valid", ["valid/x/cat/2.png", "valid/x/dog/3.png"]), (["2.png"], ["valid/x/cat/2.png"])],
)
def test_from_folder_with_train_and_valid_folders(tmp_path, valid, held_out):
    names = ["train/x/cat/0.png", "train/x/dog/1.png", "valid/x/cat/2.png", "valid/x/dog/3.png", "test/cat/4.png"]
    _folder(tmp_path, names)
    data = vision.from_folder(tmp_path, valid=valid, size=4, batch_size=2)
    assert data.classes == ("cat", "dog")
    assert [name.removeprefix(tmp_path.as_posix() + "/") for name in _names(data, data.valid)] == held_out
    assert len(data.train) == (2 if valid == "valid" else 4)


def test_from_arrays():
    images = np.stack([_colour(i) for i in range(20)])
    labels = np.arange(20) % 4
    data = vision.from_arrays(images, labels, batch_size=4, valid=[3, 5])
    assert data.classes == ("0", "1", "2", "3") and data.size == (12, 16)
    np.testing.assert_array_equal(data.valid.batch(np.arange(2))["image"], images[[3, 5]])
    np.testing.assert_array_equal(data.valid.targets, [3, 1])
    named = vision.from_arrays(images[..., 0], labels, classes="abcde".split() + list("wxyz"), size=8, batch_size=4)
    assert named.label(2) == "x" and named.train[0]["image"].shape == (8, 8, 3)
    words = vision.from_arrays(images, np.array(["no", "yes"] * 10), batch_size=4)
    assert words.classes == ("no", "yes") and words.label(words.train[0]["target"]) == "no"


def test_from_arrays_multi_hot():
    rows = np.random.default_rng(0).integers(0, 2, (20, 3))
    data = vision.from_arrays(np.zeros((20, 8, 8), np.uint8), rows, classes=["a", "b", "c"], batch_size=4, valid=[0, 1])
    assert data.task == "multi_label" and data.n_out == 3 and data.train.targets.dtype == np.float32
    np.testing.assert_array_equal(data.train.targets, rows[2:])
    assert (data.label([1, 0, 1]), data.label([0, 0, 0])) == ("a, c", "(none)")


def test_from_frame(folder, frame):
    by_column = np.arange(20) % 5 == 0
    held = pd.Series(by_column)
    data = vision.from_frame(frame, root=folder, size=8, batch_size=4, valid=held)
    assert data.classes == ("cat", "dog")
    assert [data.valid.path(i) for i in range(4)] == [folder / name for name in frame["path"][by_column]]
    listed = vision.from_frame(frame, root=folder, size=8, batch_size=4, valid=["dog/3.png"])
    assert listed.valid.path(0) == folder / "dog/3.png" and len(listed.train) == 19
    years = frame.assign(label=[1999, 2010] * 10).rename(columns={"path": "file", "label": "year"})
    dated = vision.from_frame(years, image="file", label="year", root=folder, size=8, batch_size=4)
    assert dated.classes == ("1999", "2010") and dated.label(dated.train[0]["target"]) == "1999"
    flags = vision.from_frame(frame.assign(label=by_column), root=folder, size=8, batch_size=4, classes=["ok", "bad"])
    assert flags.label(1) == "bad" and sum(flags.train.targets) + sum(flags.valid.targets) == 4
    tags = frame.assign(label=["big red", "", "red", "big"] * 5)
    many = vision.from_frame(tags, root=folder, label_delim=" ", size=8, batch_size=4, valid=[0])
    assert many.task == "multi_label" and many.classes == ("big", "red")
    np.testing.assert_array_equal(many.train.targets[:3], [[0, 0], [0, 1], [1, 0]])


def test_folders_of_several_labels(tmp_path):
    kinds = ("red_dress", "blue_dress", "red_shoes", "hats")
    _folder(tmp_path, [f"{kind}/{i}.png" for kind in kinds for i in range(3)])
    data = vision.from_folder(tmp_path, label_delim="_", size=8, batch_size=4, valid=[0])
    assert data.task == "multi_label" and data.classes == ("blue", "dress", "hats", "red", "shoes")
    for i in range(len(data.train)):
        assert set(data.label(data.train[i]["target"]).split(", ")) == set(data.train.path(i).parent.name.split("_"))


def test_one_label_at_most_is_fine_where_the_labels_are_named(frame, folder):
    single = frame.assign(label=["red", "big"] * 10)
    data = vision.from_frame(single, root=folder, label_delim=";", classes=["big", "red"], size=8, batch_size=4)
    assert data.task == "multi_label" and data.train.targets.sum(1).max() == 1
    spaced = frame.assign(label=["red; big", "big ;red"] * 10)
    assert vision.from_frame(spaced, root=folder, label_delim=";", size=8, batch_size=4).classes == ("big", "red")


def test_from_source(folder):
    paths = sorted(folder.rglob("*.png"))
    pairs = [(path, path.parent.name) for path in paths]
    data = vision.from_source(pairs, size=8, batch_size=4, valid=[0, 19])
    assert data.classes == ("cat", "dog") and data.valid.path(1) == paths[19]
    dicts = [{"image": Image.open(path).copy(), "label": int("dog" in str(path))} for path in paths]
    same = vision.from_source(dicts, size=8, batch_size=4, valid=[0, 19], classes=["cat", "dog"])
    for key in ("image", "target"):
        one, other = (part.batch(np.arange(18))[key] for part in (data.train, same.train))
        np.testing.assert_array_equal(one, other)
    tagged = [(_colour(i), ["even"] if i % 2 == 0 else ["odd", "strange"]) for i in range(8)]
    many = vision.from_source(tagged, size=8, batch_size=2, valid=[0])
    assert many.classes == ("even", "odd", "strange") and many.label(many.train.targets[0]) == "odd, strange"
    rows = vision.from_source([(_colour(i), [i % 2, 1]) for i in range(8)], size=8, batch_size=2)
    assert rows.task == "multi_label" and rows.n_out == 2


def test_presize_and_augmentation(folder):
    data = vision.from_folder(folder, size=6, presize=10, batch_size=4)
    batch = data.train.batch(np.arange(4))
    assert batch["image"].shape == (4, 10, 10, 3) and data.size == (6, 6)
    shape = lambda augment, batch: jax.eval_shape(augment, jax.random.key(0), batch)["image"].shape
    assert shape(data.augment, batch) == (4, 6, 6, 3)
    np.testing.assert_array_equal(data.prepare(batch)["image"], batch["image"][:, 2:8, 2:8])
    assert "6x6 pixels, cut from 10x10, 3 channels" in repr(data)
    plain = vision.from_folder(folder, size=6, presize=10, batch_size=4, augment=False)
    np.testing.assert_array_equal(plain.augment(jax.random.key(0), batch)["image"], plain.prepare(batch)["image"])
    whole = vision.from_folder(folder, size=(6, 9), batch_size=4, augment=False)
    assert whole.augment is None and whole.train[0]["image"].shape == (6, 9, 3)
    varied = vision.from_folder(folder, size=(6, 9), batch_size=4)
    assert shape(varied.augment, varied.train.batch(np.arange(4))) == (4, 6, 9, 3)
    mine = lambda key, batch: batch
    assert vision.from_folder(folder, size=6, batch_size=4, augment=mine).augment is mine
    assert vision.from_folder(folder, size=6, batch_size=4, resize="squish").train.resize == "squish"


def _seen(data):
    return jax.eval_shape(data.augment, jax.random.key(0), data.train.batch(np.arange(2)))["image"].shape[1:3]


def test_resized_has_the_same_images_at_another_size(folder):
    data = vision.from_folder(folder, size=6, presize=9, batch_size=4)
    larger = data.resized(8)
    assert larger.size == (8, 8) and larger.train.size == larger.valid.size == (12, 12)  # the ratio of 6 to 9
    assert _seen(larger) == (8, 8) and larger.augment == dataclasses.replace(data.augment, size=8)
    assert larger.prepare(larger.valid.batch(np.arange(2)))["image"].shape == (2, 8, 8, 3)
    for part in ("train", "valid"):
        assert _names(data, getattr(data, part)) == _names(larger, getattr(larger, part))
        np.testing.assert_array_equal(getattr(data, part).targets, getattr(larger, part).targets)
    np.testing.assert_array_equal(larger.train[0]["image"], presize(decode(larger.train.path(0)), 12))
    assert (larger.batch_size, larger.seed, larger.classes) == (data.batch_size, data.seed, data.classes)
    whole = larger.resized(10, presize=10)
    assert whole.prepare is None and _seen(whole) == (10, 10) and whole.augment.size is None
    back = whole.resized(6, presize=9)
    assert back.augment == data.augment and back.prepare == data.prepare and back.codec == data.codec
    np.testing.assert_array_equal(back.train[3]["image"], data.train[3]["image"])


def test_resized_keeps_what_was_asked_of_augmentation(folder):
    make = lambda **options: vision.from_folder(folder, size=6, batch_size=4, **options)
    plain = make(augment=False)
    assert plain.resized(8).augment is None and _seen(plain.resized(8, presize=10)) == (8, 8)
    cut = make(augment=False, presize=9)
    assert _seen(cut.resized(8)) == (8, 8) and cut.resized(9, presize=9).augment is None
    mine = make(augment=image_augment(rotate=0, flip_vert=True))
    assert mine.resized(8, presize=10).augment == image_augment(8, rotate=0, flip_vert=True)
    mixed = dataclasses.replace(cut, augment=compose(image_augment(6), mixup(2)))
    assert mixed.resized(8).augment == compose(image_augment(8), mixup(2))
    function = make(augment=lambda key, batch: {**batch, "image": batch["image"] * 2})
    assert function.resized(8).augment is function.augment
    assert vision.from_folder(folder, size=(6, 9), batch_size=4).resized((8, 12)).train.size == (8, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "size=0: give a side in pixels"),
        ((8, 6), "presize=6 is smaller than size=8"),
        (((8, 10), 12), "size=8x10 with presize=12: crops are square"),
    ],
)
def test_resized_refuses_sizes_as_the_front_doors_do(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        vision.from_folder(folder, size=6, batch_size=4).resized(*arguments)


def test_resized_refuses_a_function_with_a_size_of_its_own(folder):
    data = vision.from_folder(
        folder, size=6, batch_size=4, augment=lambda key, b: {**b, "image": b["image"][:, :6, :6]}
    )
    with pytest.raises(ValueError, match="augment makes images of 6x6 pixels, the new size is 8x8: it has a size of"):
        data.resized(8)


def test_encode_gives_what_the_data_set_holds(folder):
    data = vision.from_folder(folder, size=6, presize=10, batch_size=4)
    expected, path = data.train[3], data.train.path(3)
    with Image.open(path) as picture:
        for item in (path, str(path), path.read_bytes(), picture, np.asarray(picture), expected):
            encoded = data.encode(item)
            assert list(encoded) == ["image"]
            np.testing.assert_array_equal(encoded["image"], expected["image"])
    with pytest.raises(ValueError, match="an example needs an entry 'image', this one has target"):
        data.encode({"target": 1})
    with pytest.raises(FileNotFoundError, match="gone.jpg: no such file"):
        data.encode("gone.jpg")


def test_show_batch_draws_augmented_images_with_class_names(folder):
    darker = lambda key, batch: {**batch, "image": batch["image"] * 0.5}
    data = vision.from_folder(folder, size=6, batch_size=4, augment=darker)
    axes = data.show_batch(4).axes
    assert len(axes) == 4
    for ax in axes:
        red, green = np.asarray(ax.images[0].get_array())[0, 0, :2]
        assert abs(int(red) + int(green) - 127) <= 1  # half of 255
        assert ax.get_title() == ("cat" if red < 5 else "dog")  # red is half of the file's number
    assert len(vision.from_folder(folder, size=6, batch_size=4).show_batch(100).axes) == 16


def _spoil(folder):
    (folder / "cat" / "3.png").write_text("no image")
    whole = (folder / "dog" / "5.png").read_bytes()
    (folder / "dog" / "5.png").write_bytes(whole[:-30])


def test_unreadable_images_raise_by_name_when_they_are_read(folder):
    _spoil(folder)
    data = vision.from_folder(folder, size=8, batch_size=4, valid=[0])
    with pytest.raises(ValueError, match=r"cannot read 2 of the 19 images of a batch: .*3\.png .*5\.png .*on_error="):
        data.train.batch(np.arange(19))


def test_unreadable_images_are_skipped_by_name(folder, frame):
    _spoil(folder)
    (folder / "dog" / "6.png").unlink()
    pairs = [(folder / path, label) for path, label in zip(frame["path"], frame["label"], strict=True)]
    for read in (
        lambda: vision.from_folder(folder, size=8, batch_size=4, on_error="skip", valid=0.3),
        lambda: vision.from_frame(frame, root=folder, size=8, batch_size=4, on_error="skip", valid=0.3),
        lambda: vision.from_source(pairs, size=8, batch_size=4, on_error="skip", valid=0.3),
    ):
        with pytest.warns(SkippedImages, match=r"skipped . of .. images that cannot be read: .*\.png") as caught:
            data = read()
        assert len(caught) == 1 and caught[0].filename == __file__
        assert all(name in str(caught[0].message) for name in ("3.png", "5.png"))
        assert len(data.train) + len(data.valid) == 17
        for part in (data.train, data.valid):
            batch = part.batch(np.arange(len(part)))
            assert [data.label(target) for target in batch["target"]] == [
                part.path(i).parent.name for i in range(len(part))
            ]


def test_nothing_to_skip_warns_of_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(vision.from_folder(folder, size=8, batch_size=4, on_error="skip").train) == 16


ARRAYS = (np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4)


def _arrays(images=ARRAYS[0], labels=ARRAYS[1], **settings):
    return lambda folder, frame: vision.from_arrays(images, labels, **{"batch_size": 4, **settings})


def _files(**settings):
    return lambda folder, frame: vision.from_folder(folder, **{"size": 8, "batch_size": 4, **settings})


def _table(change=lambda frame: frame, **settings):
    return lambda folder, frame: vision.from_frame(
        change(frame), **{"root": folder, "size": 8, "batch_size": 4, **settings}
    )


def _source(source, **settings):
    return lambda folder, frame: vision.from_source(source, **{"size": 8, "batch_size": 4, **settings})


def _only_text(folder, frame):
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    return vision.from_folder(folder / "empty")


def _one_class(folder, frame):
    return vision.from_folder(_folder(folder / "one", ["cat/1.png", "cat/2.png"]))


def _loose(folder, frame):
    Image.fromarray(_colour(0)).save(folder / "lost.png")
    return vision.from_folder(folder)


def _three_folders(folder, frame):
    _folder(folder.parent / "split", [f"{top}/{kind}/0.png" for top in ("train", "valid", "test") for kind in "ab"])
    return vision.from_folder(folder.parent / "split")


def _untrained(folder, frame):
    _folder(folder.parent / "split", ["train/a/0.png", "train/b/0.png", "valid/a/0.png", "valid/c/0.png"])
    return vision.from_folder(folder.parent / "split", valid="valid", size=8, batch_size=1)


def _nothing_readable(folder, frame):
    for kind in ("cat", "dog"):
        (folder / kind / "3.png").write_text("no image")
    with pytest.warns(SkippedImages):
        return vision.from_folder(folder, valid=["cat/3.png", "dog/3.png"], size=8, on_error="skip")


BAD = {
    # folders
    "no folder": (lambda folder, frame: vision.from_folder(folder / "gone"), "there is no folder .*gone"),
    "a file": (lambda folder, frame: vision.from_folder(folder / "cat/0.png"), "0.png is a file: give the folder"),
    "no images": (_only_text, r"no images in .*empty or its folders: looked for \.jpg, .*, found 1 other files"),
    "one class": (_one_class, "the class folders of .* hold one class only, 'cat': training needs at least two"),
    "loose image": (_loose, "lost.png: directly in .*, in no class folder"),
    "three folders": (_three_folders, "train and valid, test, which valid=0.2 would mix: say valid='valid', or"),
    "class without training": (_untrained, "no training image is of class c, only validation images"),
    "one class to train": (_files(valid="dog", classes=["cat", "dog"]), "all 10 training images are of class 'cat'"),
    "class not named": (_files(classes=["cat", "dgo"]), "dog/0.png is 'dog', but the classes are cat, dgo; did you"),
    "class named twice": (_files(classes=["cat", "cat"]), "give a list of class names, each once"),
    "folder delimiter": (_files(label_delim="_"), "label_delim='_' stands in none of the class folders of .*, such as"),
    "nothing readable": (_nothing_readable, "none of the 2 validation images can be read, such as .*3.png"),
    # settings
    "batch too large": (_files(batch_size=64), "batch_size=64 is more than the 16 training images: give batch_size=16"),
    "batch of none": (_files(batch_size=0), "batch_size=0: give a whole number from 1 on"),
    "presize": (_files(presize=6), "presize=6 is smaller than size=8: give at least the size"),
    "rectangular crop": (_files(size=(6, 8), presize=9), "size=6x8 with presize=9: crops are square"),
    "size": (_files(size=0), "size=0: give a side in pixels such as 224"),
    "size float": (_files(size=8.5), "size=8.5: give a side in pixels"),
    "resize": (_files(resize="pads"), "resize='pads' is unknown: give one of crop, pad, squish; did you mean 'pad'"),
    "on_error": (_files(on_error="skp"), "on_error='skp' is unknown: give one of raise, skip; did you mean 'skip'"),
    "channels": (_files(channels=4), "channels=4 is unknown: give one of 3, 1"),
    "augment": (_files(augment="yes"), "augment='yes': give True, False or a function"),
    "valid": (_files(valid=2.0), "valid=2.0: a fraction lies between 0 and 1"),
    "valid names": (_arrays(valid=["a.jpg"]), "these images have no file names; give a fraction or an index array"),
    # arrays
    "label too large": (_arrays(classes=["a", "b", "c"]), "the label of image 3 is 3, but labels count from 0 to 2"),
    "label negative": (_arrays(labels=ARRAYS[1] - 1), "the label of image 0 is -1: labels count from 0"),
    "label gap": (_arrays(labels=ARRAYS[1] * 2), "labels go up to 6, but none is 1: count from 0 without"),
    "label fraction": (_arrays(labels=ARRAYS[1] / 4), "the label of image 1 is 0.25: classes are names or"),
    "label missing": (_arrays(labels=np.where(ARRAYS[1] == 2, np.nan, 1)), "missing in image 2, image 6, .* image 18"),
    "labels equal": (_arrays(labels=np.zeros(20, int)), "the labels hold one class only, '0'"),
    "labels short": (_arrays(labels=ARRAYS[1][:7]), "20 images, but 7 labels: give one label for each image"),
    "labels masks": (_arrays(labels=np.zeros((20, 8, 8), int)), "the masks hold one class only, '0': training needs"),
    "labels column": (_arrays(labels=ARRAYS[1][:, None]), r"labels of shape \(20, 1\): give whole numbers \(n,\)"),
    "label rows": (_arrays(labels=np.full((20, 3), 2)), "the labels of image 0 hold 2 in column 0: a row is made of"),
    "label columns": (_arrays(labels=np.ones((20, 3)), classes=["a", "b"]), "3 columns, but there are 2 classes"),
    "no arrays": (_arrays(ARRAYS[0][:0], ARRAYS[1][:0]), "the labels hold no images"),
    "float images": (_arrays(ARRAYS[0] / 255), r"images holds float64, .*: give \(images \* 255\)\.round\(\)"),
    "channels first": (_arrays(ARRAYS[0].transpose(0, 3, 1, 2)), r"give images\.transpose\(0, 2, 3, 1\)"),
    "flat images": (_arrays(ARRAYS[0].reshape(20, -1)), r"images have the shape \(20, 192\): give \(n,"),
    "ragged images": (_arrays([np.zeros((4, 4)), np.zeros((5, 4))], [0, 1]), "differ in shape: give from_source"),
    # frames
    "no column": (_table(label="lable"), "no column 'lable': the columns are path, label; did you mean 'label'"),
    "label NaN": (_table(lambda frame: frame.assign(label=["cat", None] + ["dog"] * 18)),
                  r"the label is missing in row 1 \(cat/1.png\): fill it in or drop it"),
    "label NA": (_table(lambda frame: frame.assign(label=pd.array([1, None] + [2] * 18, "Int64"))),
                 r"the label is missing in row 1 \(cat/1.png\)"),
    "tags NaN": (_table(lambda frame: frame.assign(label=["a b", None] * 10), label_delim=" "),
                 r'missing or no text in row 1 \(cat/1.png\), .* and 5 more: drop the rows, or say ""'),
    "unknown delimiter": (_table(lambda frame: frame.assign(label=["red big", ""] * 10), label_delim=";"),
                          r"label_delim=';' stands in none of the rows of column 'label', such as 'red big'"),
    "empty delimiter": (_table(label_delim=""), "label_delim='': give what stands between two labels"),
    "no tags": (_table(lambda frame: frame.assign(label=""), label_delim=" "), "no example has a label"),
    "unknown tag": (_table(lambda frame: frame.assign(label="a b"), label_delim=" ", classes=["a", "c"]),
                    r"row 0 \(cat/0.png\) is 'b', but the classes are a, c"),
    "path NaN": (_table(lambda frame: frame.assign(path=[None, *frame["path"][1:]])), "'path' is empty in row 0"),
    "wrong root": (_table(root="elsewhere"), r"20 of 20 files are not there, such as elsewhere/cat/0.png \(row 0\)"),
    "file in both": (_table(lambda frame: pd.concat([frame, frame[:1]]), valid=[0]),
                     "cat/0.png: in the training and in the validation set"),
    "empty frame": (_table(lambda frame: frame[:0]), "the rows of column 'label' hold no images"),
    # sources
    "no source": (_source(iter([])), r"a source needs len\(\) and \[i\], a list_iterator lacks them"),
    "empty source": (_source([]), "the source is empty"),
    "bare images": (_source([_colour(0)] * 3), r"example 0 of the source is a ndarray: give \(image, label\)"),
    "odd dicts": (_source([{"img": 0, "label": 1}]), "example 0 of the source is a dict of img, label: give"),
    "source range": (_source([(_colour(0), i) for i in range(4)], classes=["a", "b"]), "the label of image 2 is 2"),
    "uneven rows": (_source([(_colour(0), [0, 1]), (_colour(0), [1])]), "the labels differ in shape: give each image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, folder, frame):
    call, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        call(folder, frame)
    assert "\n" not in str(caught.value)


def test_flowers(outside_data, tmp_path):
    with zipfile.ZipFile(outside_data("flowers.zip")) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        archive.extractall(tmp_path, names[::40])
    data = vision.from_folder(tmp_path / "flowers", size=64, presize=80, batch_size=16)
    assert data.classes == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    total = len(names[::40])
    assert len(data.train) + len(data.valid) == total and abs(len(data.valid) - total / 5) <= 2.5
    batch = data.train.batch(np.arange(16))
    assert batch["image"].shape == (16, 80, 80, 3) and batch["image"].std() > 30
    again = vision.from_folder(tmp_path / "flowers", size=64, presize=80, batch_size=16)
    np.testing.assert_array_equal(again.train.batch(np.arange(16))["image"], batch["image"])
    assert data.show_batch(4).axes[0].images[0].get_array().shape == (64, 64, 3)
