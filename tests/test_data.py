"""Decoding, resizing, data sets, labels and splits."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxfast.data import ImageDataset, UnreadableImage, decode, image_files, presize, split_indices
from jaxfast.data.labels import label_tags

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUAD = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)


def _file_cases():
    """name -> (writes the file, the RGB pixels that decode must give, tolerance)."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    grey = rgb[..., 0]
    deep = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    deep[0, :3] = 0, 300, 65535
    grey_rgb = np.repeat(grey[..., None], 3, -1)
    deep_rgb = np.repeat(np.round(deep / 257.0).astype(np.uint8)[..., None], 3, -1)
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    palette = Image.fromarray(QUAD).quantize(4)
    clear = palette.copy()
    clear.info["transparency"] = bytes([0, 128, 255, 255])  # several levels, on which Pillow warns
    return {
        "rgb.png": (lambda p: Image.fromarray(rgb).save(p), rgb, 0),
        "rgba.png": (lambda p: Image.fromarray(np.concatenate([rgb, alpha], -1)).save(p), rgb, 0),
        "grey.png": (lambda p: Image.fromarray(grey).save(p), grey_rgb, 0),
        "grey_alpha.png": (lambda p: Image.merge("LA", [Image.fromarray(grey)] * 2).save(p), grey_rgb, 0),
        "bits.png": (lambda p: Image.fromarray(grey > 127).save(p), np.where(grey_rgb > 127, 255, 0), 0),
        "deep.png": (lambda p: Image.fromarray(deep).save(p), deep_rgb, 0),
        "deep.tif": (lambda p: Image.fromarray(deep).save(p), deep_rgb, 0),
        "deep32.tif": (lambda p: Image.fromarray(deep.astype(np.int32)).save(p), deep_rgb, 0),
        "palette.png": (palette.save, QUAD, 0),
        "palette.gif": (palette.save, QUAD, 0),
        "palette_alpha.png": (clear.save, QUAD, 0),
        "flat.jpg": (lambda p: Image.fromarray(flat).save(p, quality=95), flat, 3),
        "cmyk.jpg": (lambda p: Image.fromarray(flat).convert("CMYK").save(p, quality=95), flat, 3),
        "flat.webp": (lambda p: Image.fromarray(flat).save(p, lossless=True), flat, 0),
    }


@pytest.mark.parametrize("name", _file_cases())
def test_decode_files(tmp_path, name):
    write, expected, tolerance = _file_cases()[name]
    path = tmp_path / name
    write(path)
    pixels = decode(path)
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= tolerance
    with Image.open(path) as image:
        for other in (str(path), path.read_bytes(), image):
            np.testing.assert_array_equal(decode(other), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_upright_as_the_exif_standard_says(tmp_path, orientation):
    # where row 0 and column 0 of the stored pixels lie in the picture (EXIF 2.3, table of tag 274)
    row, column = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(QUAD).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(QUAD[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png", exif=exif)
    upright = QUAD.swapaxes(0, 1) if row in ("left", "right") else QUAD
    upright = upright[::-1] if "bottom" in (row, column) else upright
    upright = upright[:, ::-1] if "right" in (row, column) else upright
    np.testing.assert_array_equal(decode(tmp_path / "turned.png"), upright)
    np.testing.assert_array_equal(decode(tmp_path / "deep.png")[..., 0], upright[..., 0])


def test_decode_arrays_and_channels():
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    assert decode(grey).shape == (2, 2, 3)
    np.testing.assert_array_equal(decode(grey, 1)[..., 0], grey)
    np.testing.assert_array_equal(decode(np.array([[0, 300], [65535, 257]], np.uint16), 1)[..., 0], [[0, 1], [255, 1]])
    np.testing.assert_array_equal(decode(np.concatenate([QUAD, QUAD[..., :1]], -1)), QUAD)
    luma = 0.299 * QUAD[..., 0] + 0.587 * QUAD[..., 1] + 0.114 * QUAD[..., 2]
    assert np.abs(decode(QUAD, 1)[..., 0] - luma).max() <= 1


@pytest.mark.parametrize(
    "item, message",
    [
        (np.zeros((4, 4, 3)), r"float64, but images are uint8.*\(images \* 255\)"),
        (np.full((4, 4), 200.0), r"images\.clip\(0, 255\)"),
        (np.zeros((4, 4), bool), r"astype\('uint8'\) \* 255"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\): give \(height, width\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4, 1\)"),
        ({"image": 1}, "cannot read an image from a dict"),
        (b"no image", "cannot read image of 8 bytes: not an image file"),
    ],
)
def test_decode_names_what_is_wrong(item, message):
    with pytest.raises(ValueError, match=message):
        decode(item)


def _broken(tmp_path):
    """A text file, a truncated JPEG, a truncated PNG, an empty file, floats, and no file at all."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("jpg", "png"):
        noise.save(tmp_path / f"half.{kind}")
        whole = (tmp_path / f"half.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    return [tmp_path / name for name in ("text.jpg", "half.jpg", "half.png", "empty.png", "float.tif", "gone.jpg")]


def test_broken_files_are_named_with_the_reason(tmp_path):
    *broken, gone = _broken(tmp_path)
    for path in broken:
        with pytest.raises(UnreadableImage, match=f"cannot read image .*{path.name}: .") as caught:
            decode(path)
        assert caught.value.name == str(path)
    with pytest.raises(FileNotFoundError, match="gone.jpg: no such file"):
        decode(gone)


def test_a_batch_names_all_its_unreadable_images(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(QUAD).save(good)
    items = (good, *_broken(tmp_path), good)
    dataset = ImageDataset(items, np.arange(len(items)), np.zeros(len(items), np.int32), (2, 2))
    with pytest.raises(ValueError) as caught:
        dataset.batch(np.arange(len(items)))
    message = str(caught.value)
    assert message.startswith("cannot read 6 of the 8 images of a batch: ") and "\n" not in message
    assert message.endswith('and 1 more; remove them, or pass on_error="skip"')
    assert all(path.name in message for path in items[1:6])
    assert dataset.unreadable() == {i: str(items[i]) for i in range(1, 7)}
    np.testing.assert_array_equal(dataset.batch([0, 7])["image"], [QUAD, QUAD])


def test_a_damaged_exif_block_does_not_spoil_the_picture():
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 120, np.uint8)).save(file, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        assert abs(decode(file.getvalue()).astype(int) - 120).max() <= 2


@settings(max_examples=60, deadline=None)
@given(
    old=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    new=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    resize=st.sampled_from(["crop", "pad", "squish"]),
    channels=st.sampled_from([1, 3]),
)
def test_presize_gives_the_size_and_keeps_a_flat_image_flat(old, new, resize, channels):
    image = np.full((*old, channels), 77, np.uint8)
    resized = presize(image, new, resize)
    assert resized.shape == (*new, channels) and resized.dtype == np.uint8
    assert (resized == 77).all()


def test_presize_geometry():
    # columns 0..3 of a 2 by 4 image hold 0, 100, 200, 250
    image = np.repeat(np.array([[0, 100, 200, 250]] * 2, np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(presize(image, 2, "crop")[..., 0], [[100, 200]] * 2)
    np.testing.assert_array_equal(presize(image, (2, 4), "squish"), image)
    padded = presize(image.swapaxes(0, 1), 4, "pad")  # 4 rows, 2 columns: one column is reflected on either side
    np.testing.assert_array_equal(padded[..., 0], np.array([[0, 100, 200, 250]] * 4).T)
    assert presize(image, 2, "squish")[0, :, 0].tolist() == presize(image, 2, "squish")[1, :, 0].tolist()
    uneven = np.zeros((4, 4, 3), np.uint8)
    uneven[:, 1] = 80
    np.testing.assert_array_equal(presize(uneven, (4, 2), "crop")[..., 0], [[80, 0]] * 4)


def test_presize_antialiases():
    # a one-pixel checkerboard has the mean 127.5; without a prefilter, bilinear sampling gives 0 or 255
    board = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)[..., None]
    assert abs(presize(board, 8).astype(float) - 127.5).max() < 6
    with pytest.raises(ValueError, match="resize='stretch' is unknown: give one of crop, pad, squish"):
        presize(board, 8, "stretch")


@pytest.mark.parametrize("shape", [(9, 6, 8), (9, 6, 8, 1), (9, 6, 8, 3), (9, 6, 8, 4), (9, 12, 16), (9, 12, 16, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_stack_the_examples(shape, channels):
    images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    index, targets = np.array([8, 2, 5, 0]), np.arange(4, dtype=np.int32)
    dataset = ImageDataset(images, index, targets, (6, 8), channels=channels)
    order = np.array([3, 0, 0, 2])
    batch = dataset.batch(order)
    assert batch["image"].shape == (4, 6, 8, channels) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["target"], order)
    for row, i in enumerate(order):
        np.testing.assert_array_equal(batch["image"][row], dataset[i]["image"])
        np.testing.assert_array_equal(batch["image"][row], presize(decode(images[index[i]], channels), (6, 8)))
    np.testing.assert_array_equal(dataset.batch(order)["image"], batch["image"])
    everything = dataset.batch(np.arange(len(dataset)))
    assert dataset.nbytes == sum(array.nbytes for array in everything.values())
    assert len(list(dataset)) == len(dataset) == 4 and dataset.path(0) is None


def test_image_files_are_sorted_and_visible_ones(tmp_path):
    names = ["b/two.PNG", "b/one.jpg", "a/deep/er/x.webp", "b2/y.tiff"]
    for name in [*names, ".hidden/z.jpg", "b/.thumb.jpg", "__MACOSX/w.jpg", "b/notes.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.relative_to(tmp_path).as_posix() for file in image_files(tmp_path)] == [
        "a/deep/er/x.webp", "b/one.jpg", "b/two.PNG", "b2/y.tiff",
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8).filter(lambda sizes: max(sizes) > 1),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_fraction_is_stratified(sizes, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, valid = split_indices(len(labels), fraction, seed=seed, labels=labels)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(len(labels)))
    for label, size in enumerate(sizes):
        count = (labels[valid] == label).sum()
        assert count == 0 if size == 1 else 1 <= count <= size - 1
        assert abs(count - fraction * size) <= 1
    again = split_indices(len(labels), fraction, seed=seed, labels=labels)
    np.testing.assert_array_equal(valid, again[1])


def test_fraction_has_the_right_total_and_depends_on_the_seed():
    labels = np.repeat(np.arange(10), 12)  # 2.4 of each class: rounding class by class would give 20, not 24
    parts = [split_indices(120, 0.2, seed=seed, labels=labels)[1] for seed in (0, 1)]
    assert [len(part) for part in parts] == [24, 24]
    assert set(parts[0]) != set(parts[1])
    assert set(np.bincount(labels[parts[0]])) == {2, 3}
    assert len(split_indices(10, 0.25)[1]) == 2  # without labels: a plain draw


NAMES = ["train/cat/1.jpg", "train/dog/2.jpg", "valid/cat/1.jpg", "valid/dog/3.jpg", "test/cat/4.jpg"]


@pytest.mark.parametrize(
    "valid, train, held_out",
    [
        ([4, 1], [0, 2, 3], [1, 4]),
        (np.array([False, True, False, False, True]), [0, 2, 3], [1, 4]),
        ("valid", [0, 1], [2, 3]),  # test/ belongs to neither part
        ("valid/dog", [0, 1], [3]),
        (["2.jpg", "valid/cat/1.jpg"], [0, 3, 4], [1, 2]),
    ],
)
def test_split_by_index_folder_and_names(valid, train, held_out):
    parts = split_indices(5, valid, names=NAMES)
    assert [part.tolist() for part in parts] == [train, held_out]


def test_split_by_folder_without_train_takes_the_rest():
    train, valid = split_indices(3, "hold", names=["a/1.jpg", "hold/a/1.jpg", "holder/1.jpg"])
    assert train.tolist() == [0, 2] and valid.tolist() == [1]


@pytest.mark.parametrize(
    "valid, message",
    [
        (0.0, "valid=0.0: a fraction lies between 0 and 1"),
        (1.5, "valid=1.5: a fraction lies between 0 and 1"),
        (20, "valid=20: give a fraction such as 0.2, an index array, a folder name or a list of file names"),
        (None, "valid=None: give a fraction"),
        ([], "valid is empty"),
        ([0.5, 0.5], "valid holds float64, such as .*0.5"),
        ([1, 7], "valid holds the index 7, but the 5 examples count from 0 to 4"),
        ([-1], "valid holds the index -1"),
        ([1, 1], "valid holds the index 1 twice"),
        ([0, 1, 2, 3, 4], "leaves none of the 5 examples to train"),
        ([True, False], "valid holds 2 booleans for 5 examples"),
        (np.zeros(5, bool), "leaves none of the 5 examples to validate"),
        ("vaild", "valid='vaild': no image lies below that folder; .*did you mean 'valid'"),
        (["1.jpg"], r"'1.jpg', which fits 2 images \(train/cat/1.jpg, valid/cat/1.jpg\): give paths with folders"),
        (["valid/cat/7.jpg"], "'valid/cat/7.jpg', which is not among the 5 images; did you mean 'valid/cat/1.jpg'"),
    ],
)
def test_split_errors(valid, message):
    with pytest.raises(ValueError, match=message) as caught:
        split_indices(5, valid, names=NAMES)
    assert "\n" not in str(caught.value)


def test_split_errors_about_names_and_numbers():
    with pytest.raises(ValueError, match="valid='valid': these images have no file names"):
        split_indices(5, "valid")
    with pytest.raises(ValueError, match="a.jpg: in the training and in the validation set"):
        split_indices(3, [0], names=["x/a.jpg", "x/b.jpg", "./x/a.jpg"])
    with pytest.raises(ValueError, match="1 example cannot be split"):
        split_indices(1, 0.2)


def test_label_tags_are_multi_hot():
    labels = label_tags([["sun", "sea"], [], ["sea"]], None, where=str)
    assert labels.classes == ("sea", "sun") and labels.task == "multi_label"
    np.testing.assert_array_equal(labels.targets, [[1, 1], [0, 0], [1, 0]])
