"""Segmentation data: codes of mask files, masks beside their images, what is refused, and a model that exports."""

import json
import struct
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import jaxfast
from jaxfast import losses, vision
from jaxfast.__main__ import main
from jaxfast.augment import image_augment
from jaxfast.data import SkippedImages
from jaxfast.data.image_codec import ImageCodec
from jaxfast.data.images import presize
from jaxfast.data.masks import Masks, code_table, read_codes
from jaxfast.learner import Learner

CODES = ["sky", "void", "road", "car"]


def _codes(i, height=12, width=16):
    """Three stripes of codes, and a corner of void."""
    codes = np.repeat(np.array([0, 2, 3]), [4, 4, height - 8])[:, None].repeat(width, 1)
    codes[: 1 + i % 3, :2] = 1
    return codes.astype(np.uint8)


def _picture(codes):
    """An image of which every colour is that of its code."""
    return np.stack([codes * 60, 200 - codes * 40, codes * 0 + 90], -1).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    for i in range(10):
        part = "train" if i < 8 else "val"
        for kind, pixels in (("images", _picture(_codes(i))), ("masks", _codes(i))):
            (tmp_path / kind / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / part / f"{i}.png")
    return tmp_path


def masks(root, **options):
    return vision.from_masks(
        options.pop("images", root / "images"),
        options.pop("masks", root / "masks"),
        **{"codes": CODES, "void": "void", "size": (12, 16), "batch_size": 4, "valid": "val"} | options,
    )


def test_masks_lie_beside_their_images(root):
    data = masks(root)
    assert data.task == "segmentation" and data.classes == ("sky", "road", "car") and data.n_out == 3
    assert (len(data.train), len(data.valid), data.valid.path(0).name) == (8, 2, "8.png")
    batch = data.train.batch(np.arange(8))
    assert batch["target"].dtype == np.uint8 and batch["target"].shape == (8, 12, 16)
    expected = np.array([0, losses.VOID, 1, 2], np.uint8)
    for i in range(8):
        np.testing.assert_array_equal(batch["target"][i], expected[_codes(i)])
        np.testing.assert_array_equal(data.train[i]["target"], batch["target"][i])
        np.testing.assert_array_equal(batch["image"][i], _picture(_codes(i)))
    assert data.train.nbytes == sum(entry.nbytes for entry in batch.values())
    assert repr(data) == (
        "ImageData: 8 training and 2 validation images, 3 classes (sky, road, car)\n"
        "  12x16 pixels, 3 channels, batches of 4, a class for every pixel"
    )


def test_the_ways_to_say_where_masks_are(root):
    expected = masks(root).train.batch(np.arange(8))["target"]
    files = sorted((root / "images").rglob("*.png"))
    beside = [root / "masks" / file.relative_to(root / "images") for file in files]
    (root / "codes.txt").write_text("\n".join(CODES) + "\n")
    frame = pd.DataFrame({"path": [f"images/{f.parent.name}/{f.name}" for f in files]})
    frame["mask"] = frame["path"].str.replace("images", "masks")
    arrays = [np.stack([np.asarray(Image.open(file)) for file in part]) for part in (files, beside)]
    options = {"size": (12, 16), "batch_size": 4, "void": "void"}
    for data in (
        masks(root, masks=lambda path: str(path).replace("images", "masks")),
        masks(root, images=files, masks=beside),
        masks(root, images=list(map(str, files))),
        masks(root, codes=root / "codes.txt", void=1),
        masks(root, codes=dict(enumerate(CODES)), void=["void"]),
        vision.from_frame(frame, root=root, mask="mask", classes=CODES, valid=[8, 9], **options),
        vision.from_arrays(*arrays, classes=CODES, valid=[8, 9], **options),
    ):
        assert data.task == "segmentation" and data.classes == ("sky", "road", "car")
        np.testing.assert_array_equal(data.train.batch(np.arange(8))["target"], expected)


def test_codes_of_arrays_name_themselves():
    images, codes = np.zeros((4, 2, 3), np.uint8), np.arange(24).reshape(4, 2, 3) % 3
    data = vision.from_arrays(images, np.where(codes == 0, 255, codes - 1), void=255, batch_size=2, valid=[0])
    assert data.classes == ("0", "1")
    np.testing.assert_array_equal(np.unique(data.train.batch(np.arange(3))["target"]), [0, 1, losses.VOID])
    flags = vision.from_arrays(images, codes == 1, classes=["no", "yes"], batch_size=2, valid=[0])
    assert flags.task == "segmentation" and flags.valid[0]["target"].tolist() == [[0, 1, 0], [0, 1, 0]]


def test_masks_within_the_folder_of_the_images_are_no_images(root):
    (root / "masks").rename(root / "images" / "labels")
    assert len(masks(root, masks=root / "images" / "labels").train) == 8


def _png(codes, bits):
    """A grey PNG of less than 8 bits, which Pillow reads but does not write."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = [np.packbits([[int(b) for b in f"{code:0{bits}b}"] for code in row]).tobytes() for row in codes]
    header = struct.pack(">IIBBBBB", codes.shape[1], codes.shape[0], bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_values_of_few_bits_are_codes(tmp_path, bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, (5, 8)).astype(np.uint8)
    (tmp_path / "mask.png").write_bytes(_png(codes, bits))
    np.testing.assert_array_equal(read_codes(tmp_path / "mask.png"), codes)


def test_palettes_are_not_looked_at(tmp_path):
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.fromarray(codes)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    assert picture.mode == "P"
    for options in ({}, {"transparency": 3}):
        picture.save(tmp_path / "mask.png", **options)
        np.testing.assert_array_equal(read_codes(tmp_path / "mask.png"), codes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_turn_as_their_images_do(tmp_path, orientation):
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(codes).save(tmp_path / "mask.png", exif=exif)
    with Image.open(tmp_path / "mask.png") as picture:
        np.testing.assert_array_equal(read_codes(tmp_path / "mask.png"), np.asarray(ImageOps.exif_transpose(picture)))


@settings(deadline=None, max_examples=60)
@given(
    old=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    new=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    resize=st.sampled_from(["crop", "pad", "squish"]),
)
def test_a_mask_keeps_to_its_image_however_it_is_resized(old, new, resize):
    """Half of the image is white: the mask's border is where the presized image passes half of its brightness."""
    if resize == "pad":  # reflection needs more picture than border
        new = tuple(min(side, 2 * other - 1) for side, other in zip(new, old, strict=True))
        scale = min(new[0] / old[0], new[1] / old[1])
        if any(2 * max(1, round(o * scale)) - 1 < n for o, n in zip(old, new, strict=True)):
            return
    half = np.zeros((1, *old), np.uint8)
    half[:, :, old[1] // 2 :] = 1
    found = Masks(half, np.array([0]), code_table(["a", "b"])).read(0, old, new, resize)
    image = presize(np.repeat(half[0][..., None] * 255, 3, -1), new, resize)[..., 0]
    assert found.shape == new and set(np.unique(found)) <= {0, 1}
    sure = (image < 100) | (image > 155)
    np.testing.assert_array_equal(found[sure], image[sure] > 127)


def test_resizing_by_whole_factors_by_hand():
    codes = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    read = lambda *args: Masks(codes, np.array([0]), code_table([str(i) for i in range(16)])).read(0, (4, 4), *args)
    np.testing.assert_array_equal(read((8, 8), "squish"), codes[0].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(read((2, 4), "crop"), codes[0, 1:3])
    np.testing.assert_array_equal(read((4, 6), "pad"), codes[0][:, [1, 0, 1, 2, 3, 2]])
    np.testing.assert_array_equal(read((4, 4), "crop"), codes[0])


def test_presize_and_augmentation_move_both(root):
    data = masks(root, size=6, presize=10, batch_size=8)
    batch = data.train.batch(np.arange(8))
    made = jax.jit(data.augment)(jax.random.key(0), batch)
    assert made["image"].shape == (8, 6, 6, 3) and made["target"].shape == (8, 6, 6)
    assert made["target"].dtype == jnp.uint8
    cut = data.prepare(batch)
    np.testing.assert_array_equal(cut["target"], batch["target"][:, 2:8, 2:8])
    assert set(data.prepare({"image": batch["image"]})) == {"image"}
    mine = masks(root, augment=image_augment(rotate=0))
    assert mine.augment == image_augment(rotate=0, target="mask")  # a mask that stays behind would go unnoticed


def _change(name, pixels):
    def change(root):
        Image.fromarray(pixels).save(root / name)
        return masks(root)

    return change


def _late(root):
    data = masks(root)
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(root / "masks/train/0.png")
    return data.train.batch(np.arange(8))


def _missing(root):
    (root / "masks/train/3.png").unlink()
    return masks(root)


def _jpeg(root):
    Image.fromarray(_codes(0)).save(root / "masks/train/0.png", "JPEG")
    return masks(root)


def _all_void(root):
    for file in (root / "masks").rglob("*.png"):
        Image.fromarray(np.full((12, 16), 1, np.uint8)).save(file)
    return masks(root)


GREY, IMAGES = np.zeros((4, 6, 8), np.uint8), np.zeros((4, 6, 8, 3), np.uint8)
TWO = np.arange(192).reshape(4, 6, 8) % 2


def _arrays(labels=TWO, images=IMAGES, **options):
    return lambda root: vision.from_arrays(images, labels, **{"batch_size": 2, "valid": [0]} | options)


BAD = {
    "another size": (_change("masks/train/2.png", _codes(0)[:, 1:]),
                     r"2.png has 12x15 pixels, its image 12x16 \(height x width\): make the mask as large"),
    "code out of range": (_change("masks/val/9.png", _codes(0) + 1),
                          "mask .*9.png holds code 4, but the codes are 0 to 3: name it, or say void=4"),
    "code out of range when read": (_late, "mask .*0.png holds code 9, but the codes are 0 to 3"),
    "code without a name": (lambda root: masks(root, codes={0: "a", 2: "b", 255: "c"}, void=()),
                            "holds code 1, but the codes are 0, 2, 255: name it, or say void=1"),
    "missing": (_missing, "1 of 10 masks are not there, such as .*masks/train/3.png of .*images/train/3.png: add"),
    "no mask folder": (lambda root: masks(root, masks=root / "mask"), "there is no folder .*mask: give the folder"),
    "lists": (lambda root: masks(root, masks=[root / "masks/train/0.png"]), "10 images, but 1 masks: give one mask"),
    "void": (lambda root: masks(root, void="viod"), "void='viod' is not among the codes, .* did you mean 'void'"),
    "void number": (lambda root: masks(root, void=300), "void=300 is not among the codes"),
    "one class": (lambda root: masks(root, codes=["sky", "void"]), "the codes leave one class only, 'sky' without"),
    "one class in masks": (lambda root: masks(root, codes=["a", "b", "c", "d", "e"], void=[0, "b", 2]),
                           "the masks hold one class only, 'd'"),
    "all void": (_all_void, "the masks hold void only"),
    "codes twice": (lambda root: masks(root, codes=["a", "a", "b"]), "give a list of class names, each once"),
    "codes file": (lambda root: masks(root, codes="codes.text"), "codes='codes.text' is no file: give one with a name"),
    "code 300": (lambda root: masks(root, codes={0: "a", 300: "b"}), "codes= names the code 300: codes of masks are"),
    "colour": (_change("masks/train/0.png", _picture(_codes(0))), r"0.png is in colour \(RGB\): save the codes as a"),
    "16 bits": (_change("masks/train/0.png", _codes(0).astype(np.uint16)), r"0.png is of 16 bits"),
    "JPEG": (_jpeg, "0.png is a JPEG, which changes codes: save"),
    "function": (lambda root: masks(root, masks=lambda path: None), "masks= gives None for .*0.png: return the path"),
    "images of arrays": (lambda root: masks(root, images=[GREY[0]]), "images= holds a ndarray: give a folder or a"),
    "no images": (lambda root: masks(root, images=[]), "images= is empty: give a folder or a list of files"),
    "gone": (lambda root: masks(root, images=["a.png"]), "1 of 1 images are not there, such as a.png"),
    "folders": (lambda root: masks(root, valid=0.2), "train and val, which valid=0.2 would mix: say valid='val'"),
    # arrays
    "array size": (_arrays(TWO[:, 1:]), "a mask has 5x8 pixels, its image 6x8"),
    "array length": (_arrays(TWO[1:]), "4 images, but 3 masks: give one mask for each image"),
    "array code": (_arrays(TWO + 1, classes=["a", "b"]), "the mask of image 0 holds code 2, but the codes are 0 to 1"),
    "array gap": (_arrays(TWO * 255), r"masks hold 0, 255, but no 1: name the codes, classes=\{code: name\}"),
    "array floats": (_arrays(TWO / 2), "masks hold float64: codes are whole numbers"),
    "array large": (_arrays(TWO * 300), "the mask of image 0 holds 300: codes are 0 to 255"),
    "void of labels": (_arrays(np.arange(4), void=1), r"void=1 is for masks \(n, height, width\), the labels"),
    "task": (_arrays(np.arange(4) % 2, task="segmentation"), r"masks of shape \(4,\): give \(n, height, width\)"),
    "other task": (_arrays(task="single_label"), "task='single_label', but these labels are of task 'segmentation'"),
    "no task": (_arrays(task="masks"), "task='masks' is unknown: give one of auto, single_label, multi_label, segm"),
    # frames
    "no codes": (lambda root: vision.from_frame(pd.DataFrame({"path": [], "mask": []}), mask="mask"), "give classes="),
    "no mask column": (lambda root: vision.from_frame(pd.DataFrame({"path": [], "mask": []}), mask="masc"),
                       "no column 'masc': .* did you mean 'mask'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, root):
    call, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        call(root)
    assert "\n" not in str(caught.value)


def test_masks_that_cannot_be_read_are_skipped_with_their_images(root):
    (root / "masks/train/3.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot read 1 of the 8 images of a batch: .*3.png \(its mask .* is not an"):
        masks(root).train.batch(np.arange(8))
    with pytest.warns(SkippedImages, match="skipped 1 of 10"):
        data = masks(root, on_error="skip")
    assert len(data.train) == 7 and data.train.batch(np.arange(7))["target"].shape == (7, 12, 16)
    files = sorted((root / "images").rglob("*.png"))
    files[5].unlink()
    with pytest.warns(SkippedImages, match="skipped 2 of 10 .*3.png.*5.png"):
        assert len(masks(root, images=files, on_error="skip").train) == 6


class Pixels(nn.Module):
    """The least that gives a class for every pixel: each by its own colour."""

    n_out: int

    @nn.compact
    def __call__(self, images, train=False):
        x = images.astype(jnp.float32) / 64 - 2
        return nn.Dense(self.n_out)(nn.relu(nn.Dense(16)(x)))


@pytest.fixture
def learn(root):
    """A learner of stripes, which colours give away, on crops of presized images."""
    data = masks(root, size=8, presize=10, resize="squish", batch_size=8)
    learn = Learner(data, Pixels(data.n_out), loss=losses.segmentation_cross_entropy, metrics=["mean_iou"], quiet=True)
    learn.fit(30, 0.05)
    return learn


def test_a_model_of_masks_predicts_shows_and_exports(learn, root, tmp_path, capsys):
    assert learn.validate()["mean_iou"] > 0.6
    assert learn.validate(learn.data.valid) == pytest.approx(learn.validate())  # read batch by batch
    probabilities, targets = learn.get_preds()
    assert probabilities.shape == (2, 8, 8, 3) and targets.shape == (2, 8, 8)  # cut as the images are
    with pytest.raises(ValueError, match="the targets are segmentation, which move with the image: get_preds"):
        learn.tta()
    file = root / "images/val/8.png"
    answer = learn.predict(file)
    assert answer.mask.shape == (8, 8) and answer.mask.dtype == np.uint8
    np.testing.assert_array_equal(answer.mask, answer.probabilities.argmax(-1))
    assert list(answer.value) == ["sky", "road", "car"] and sum(answer.value.values()) == pytest.approx(1)
    assert "%" in answer.label and "8x8 pixels" in repr(answer)
    learn.export(tmp_path / "stripes.jaxfast")
    export = jaxfast.load_export(tmp_path / "stripes.jaxfast")
    np.testing.assert_array_equal(export.predict(file).mask, answer.mask)
    assert main(["predict", str(tmp_path / "stripes.jaxfast"), str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(answer.value)
    assert main(["predict", str(tmp_path / "stripes.jaxfast"), str(file)]) == 0
    assert answer.label in capsys.readouterr().out
    assert export.codec == learn.data.codec == ImageCodec.from_json(export.about["codec"])
    assert len(learn.show_batch(4).axes) == 4
    figure = learn.show_results(2)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["image", "truth", "prediction"] and len(figure.axes) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "road", "car"]


def test_a_codec_from_before_views_is_read():
    fields = {"size": [4, 6], "resize": "crop", "channels": 1, "classes": ["a", "b"], "task": "single_label"}
    assert ImageCodec.from_json(fields) == ImageCodec((4, 6), "crop", 1, ("a", "b"), "single_label")


def test_a_classifier_is_refused(root):
    with pytest.raises(ValueError, match="the targets are masks, a class for every pixel: use vision.unet_learner"):
        vision.learner(masks(root), "resnet18", pretrained=False)


def test_resized_reads_the_same_files_anew(root):
    data = masks(root, size=6, presize=9)
    larger = data.resized(8)
    assert larger.size == (8, 8) and larger.train.size == (12, 12)
    batch = larger.train.batch(np.arange(4))
    assert batch["target"].shape == (4, 12, 12)
    assert jax.eval_shape(larger.augment, jax.random.key(0), batch)["target"].shape == (4, 8, 8)
    assert larger.prepare(batch)["target"].shape == (4, 8, 8)
    assert [larger.train.path(i) for i in range(8)] == [data.train.path(i) for i in range(8)]
