"""Two decoders and two resizers, with the extra `fast` and without, beside Pillow alone."""

import functools
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxfast.data import UnreadableImage, decode, jpeg, presize, resample
from jaxfast.data.images import read_image


@pytest.fixture(params=["fast", "pillow"])
def decoder(request, monkeypatch):
    """With the extra `fast`, and as if it were not installed."""
    if request.param == "fast":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cykooz_resizer")
    else:
        monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
        monkeypatch.setattr(resample, "_convolution", lambda: None)
    return request.param


@functools.cache
def photo(name="astronaut", size=(333, 251)):
    """A photograph as a PIL image, (width, height) pixels."""
    from skimage import data

    return Image.fromarray(getattr(data, name)()).resize(size, Image.Resampling.LANCZOS)


def coded(picture, form="JPEG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def by_pillow(data, channels=3):
    with Image.open(io.BytesIO(data)) as image:
        picture = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def difference(a, b):
    return np.abs(a.astype(int) - b)


KINDS = {
    "4:4:4": {"quality": 95, "subsampling": "4:4:4"},
    "4:2:2": {"quality": 80, "subsampling": "4:2:2"},
    "4:2:0": {"quality": 75, "subsampling": "4:2:0"},
    "poor": {"quality": 5},
    "progressive": {"quality": 90, "progressive": True},
    "own tables": {"quality": 90, "optimize": True},
    "restarts": {"quality": 90, "restart_marker_blocks": 3},
    "RGB": {"quality": 90, "keep_rgb": True},
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_gives_pillows_pixels_bit_for_bit(decoder, kind, channels, monkeypatch):
    for picture in (photo(), photo("coffee", (64, 17)), photo().convert("L"), photo(size=(1, 1))):
        if kind == "RGB" and picture.mode == "L":
            continue
        data = coded(picture, **KINDS[kind])
        expected = by_pillow(data, channels)
        with monkeypatch.context() as patch:
            if decoder == "fast":
                patch.setattr(Image, "open", None)  # Pillow has no part in it
            np.testing.assert_array_equal(decode(data, channels), expected)


def _bad_bytes():
    data = coded(photo(), quality=90)
    noisy = bytearray(data)
    noisy[len(data) // 2 : len(data) // 2 + 60] = b"\xff\xd9\x00\x12\xff\xd3" * 10
    return {
        "CMYK": coded(photo().convert("CMYK")),
        "PNG": coded(photo(), "PNG"),
        "noise inside": bytes(noisy),
        "rubbish behind": data + b"rubbish" * 50,
        "rubbish between": data[:20] + b"\x00" * 30 + data[20:],
        "half": data[: len(data) // 2],
        "no end": data[:-2],
        "head only": data[:300],
        "three bytes": data[:3],
        "no bytes": b"",
    }


@pytest.mark.parametrize("name", _bad_bytes())
def test_odd_and_damaged_files_are_read_or_refused_as_pillow_does(name, monkeypatch):
    pytest.importorskip("simplejpeg")
    data = _bad_bytes()[name]

    def outcome():
        try:
            return decode(data)
        except UnreadableImage as error:
            return str(error)

    ours = outcome()
    monkeypatch.setattr(jpeg, "_simplejpeg", lambda: None)
    theirs = outcome()
    assert type(ours) is type(theirs)
    if isinstance(ours, str):
        assert ours == theirs
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_left_to_pillow():
    pytest.importorskip("simplejpeg")
    whole = lambda height, width: 1
    assert jpeg.decode_jpeg(coded(photo()), whole)[0].shape == (251, 333, 3)
    assert jpeg.decode_jpeg(coded(photo().convert("L")), whole)[0].shape == (251, 333, 1)
    for name in ("CMYK", "PNG", "half", "head only", "three bytes", "no bytes"):
        assert jpeg.decode_jpeg(_bad_bytes()[name], whole) is None


def test_the_limit_of_pixels_is_pillows(decoder, monkeypatch):
    large, bit_large = coded(photo(size=(20, 20))), coded(photo(size=(12, 12)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="exceeds limit of 200 pixels"):
        decode(large)
    with pytest.warns(Image.DecompressionBombWarning):
        decode(bit_large)


def _turned(orientation, size, **options):
    exif = Image.Exif()
    exif[jpeg.ORIENTATION] = orientation
    return coded(photo(size=size), quality=95, exif=exif, **options)


@pytest.mark.parametrize("orientation", [*range(1, 9), 9])
@pytest.mark.parametrize("size", [(64, 48), (331, 251)])
def test_cameras_orientation(decoder, orientation, size):
    data = _turned(orientation, size)
    upright = by_pillow(data)
    np.testing.assert_array_equal(decode(data), upright)
    for resize in ("crop", "squish", "pad"):
        small = read_image(data, (20, 30), resize)  # the larger picture is decoded at half its size
        off = difference(small, presize(upright, (20, 30), resize))
        assert off.mean() < 2 and np.percentile(off, 99) < 16, resize


def test_orientation_in_xmp_and_none(decoder):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = coded(photo(), xmp=xmp)
    assert jpeg.jpeg_orientation(data) == 6 and jpeg.jpeg_orientation(coded(photo())) is None
    np.testing.assert_array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize(
    "image, size, resize, by",
    [
        ((375, 500), (224, 224), "crop", 1),  # 375 / 224 = 1.7 times
        ((375, 500), (128, 128), "crop", 1),  # 2.9 times
        ((400, 400), (100, 100), "crop", 2),  # 4 times: half is twice the size
        ((399, 400), (100, 100), "crop", 1),
        ((800, 801), (100, 100), "squish", 4),
        ((3000, 4000), (128, 128), "crop", 8),  # 23.4 times
        ((12000, 16000), (64, 64), "crop", 8),  # there is no more than 8
        ((400, 4000), (100, 100), "crop", 2),  # the shorter side counts
        ((400, 4000), (100, 100), "pad", 8),  # the longer side counts
        ((400, 4000), (50, 1000), "squish", 2),
        ((10, 10), (100, 100), "crop", 1),
    ],
)
def test_reduction(image, size, resize, by):
    assert jpeg.reduction(*image, size, resize) == by


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("size", [(451, 300), (333, 251), (500, 375)])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_reduced_decoding_differs_little_from_plain(decoder, name, size, by):
    data = coded(photo(name, size), quality=90)
    side = size[1] // (2 * by)
    assert jpeg.reduction(size[1], size[0], (side, side), "crop") == by
    off = difference(read_image(data, side), presize(by_pillow(data), side))
    assert off.mean() < 1.6 and off.max() <= 16


def test_both_decoders_reduce_to_the_same_pixels(monkeypatch):
    pytest.importorskip("simplejpeg")
    monkeypatch.setattr(resample, "_convolution", lambda: None)
    for size in ((451, 300), (333, 251), (64, 64), (63, 65)):
        for side in (5, 8, 16, 30):
            data = coded(photo(size=size), quality=90)
            ours = read_image(data, side)
            with monkeypatch.context() as patch:
                patch.setattr(jpeg, "_simplejpeg", lambda: None)
                np.testing.assert_array_equal(ours, read_image(data, side))


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_reduced_decoding_does_not_alias(decoder, period):
    stripes = np.zeros((400, 600, 3), np.uint8)
    stripes[:, ::period] = 255
    data = coded(Image.fromarray(stripes), quality=95)
    small = read_image(data, 100)  # decoded at half the size
    assert jpeg.reduction(400, 600, (100, 100), "crop") == 2
    assert small.std() < 12  # of 127, were a stripe to fall on every other pixel
    np.testing.assert_allclose(small.mean(), 255 / period, atol=6)


@settings(max_examples=60, deadline=None)
@given(
    old=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    new=st.tuples(st.integers(16, 40), st.integers(16, 40)),
    resize=st.sampled_from(["crop", "pad", "squish"]),
    channels=st.sampled_from([1, 3]),
    form=st.sampled_from(["JPEG", "PNG", None]),
)
def test_read_image_is_presize_of_decode(old, new, resize, channels, form):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    item = pixels if form is None else coded(Image.fromarray(pixels), form)
    np.testing.assert_array_equal(read_image(item, new, resize, channels), presize(decode(item, channels), new, resize))


@settings(max_examples=100, deadline=None)
@given(
    old=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    new=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    cut=st.tuples(*[st.floats(0, 0.49)] * 4),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_the_fast_resizer_is_pillows_to_two_levels(old, new, cut, channels, seed):
    pytest.importorskip("cykooz_resizer")
    pixels = np.random.default_rng(seed).integers(0, 256, (*old, channels), dtype=np.uint8)
    (height, width), (left, top, right, bottom) = old, cut
    box = (left * width, top * height, width - right * width, height - bottom * height)
    ours = resample.resample(pixels, new, box)
    picture = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
    theirs = np.asarray(picture.resize(new[::-1], Image.Resampling.BILINEAR, box=box)).reshape(*new, channels)
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    assert difference(ours, theirs).max() <= 2


def test_resizing_without_the_extra_is_pillows_own(monkeypatch):
    monkeypatch.setattr(resample, "_convolution", lambda: None)
    image = np.asarray(photo())
    theirs = photo().resize((40, 30), Image.Resampling.BILINEAR, box=(1.5, 2, 300.25, 251))
    np.testing.assert_array_equal(resample.resample(image, (30, 40), (1.5, 2, 300.25, 251)), np.asarray(theirs))
