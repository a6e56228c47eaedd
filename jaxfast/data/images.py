"""Images on the host: decoding to uint8 and resizing to one fixed size.

Nothing here is random: the host gives the same bits at every call, and the device randomises.
"""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from jaxfast.data.jpeg import ORIENTATION, decode_jpeg, jpeg_orientation, reduction
from jaxfast.data.resample import resample
from jaxfast.messages import kind

RESIZES = ("crop", "pad", "squish")
"""How an image gets another shape: cut at the centre, padded with its reflection, stretched."""


class UnreadableImage(ValueError):
    """An image that cannot be decoded; `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"cannot read image {name}: {reason}")
        self.name, self.reason = name, reason


class SkippedImages(UserWarning):
    """Images that cannot be read were left out of the data, as on_error="skip" asked."""


def decode(item: Any, channels: int = 3) -> UInt8[np.ndarray, "height width channels"]:
    """Return an image as uint8, (height, width, `channels`), with `channels` 3 (RGB) or 1 (grey).

    `item` is a path, the bytes of an image file, a PIL image, or an array (height, width) or (height, width,
    1 | 3 | 4) of uint8 or uint16. The orientation that a camera noted (EXIF) is applied, 16-bit grey is scaled
    to 8 bits, transparency is dropped as fastai does. Raises UnreadableImage (a ValueError) for what is not a
    whole image, FileNotFoundError, and ValueError for other types, shapes and dtypes.
    """
    return _read(item, channels, lambda height, width, turned: 1).pixels


def read_image(
    item: Any, size: int | tuple[int, int], resize: str = "crop", channels: int = 3
) -> UInt8[np.ndarray, "h w channels"]:
    """`presize(decode(item, channels), size, resize)`, but a JPEG of at least four times the size is not decoded to all
    of its pixels (`jpeg.reduction`)."""
    return read_sized(item, size, resize, channels)[0]


def read_sized(
    item: Any, size: int | tuple[int, int], resize: str = "crop", channels: int = 3
) -> tuple[UInt8[np.ndarray, "h w channels"], tuple[int, int]]:
    """What `read_image` gives, and the (height, width) that the upright image has: what `window` needs."""
    size = pair(size)
    along = lambda height, width, turned: reduction(height, width, size[::-1] if turned else size, resize)
    picture = _read(item, channels, along)
    return _presize(picture.pixels, picture.area, size, resize), picture.extent


def image_extent(item: Any) -> tuple[int, int] | None:
    """(height, width) of an upright image that `decode` takes, from its header; None for anything else.

    Raises UnreadableImage and FileNotFoundError as `decode` does.
    """
    from PIL import Image

    if isinstance(item, Image.Image):
        return _turned_extent(item)
    if isinstance(item, (str, os.PathLike, bytes, bytearray)):
        packed = isinstance(item, (bytes, bytearray))
        name = f"of {len(item)} bytes" if packed else os.fspath(item)
        try:
            with Image.open(BytesIO(item) if packed else item) as image:
                return _turned_extent(image)
        except FileNotFoundError:
            raise FileNotFoundError(f"cannot read image {name}: no such file") from None
        except Exception as error:  # a broken file makes Pillow raise nearly anything
            raise UnreadableImage(name, "not an image file that Pillow knows") from error
    return tuple(np.shape(item)[:2]) if hasattr(item, "__array__") else None


def _turned_extent(image) -> tuple[int, int]:
    turned = image.getexif().get(ORIENTATION) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


class _Picture(NamedTuple):
    """Pixels, upright, the part of them (left, top, right, bottom), in fractions, that is picture, and the (height,
    width) of the picture before it was reduced."""

    pixels: np.ndarray
    area: tuple[float, float, float, float]
    extent: tuple[int, int]


_TURNED = (5, 6, 7, 8)
"""The orientations whose rows are the columns of the picture."""


def _read(item: Any, channels: int, factor: Callable[[int, int, bool], int]) -> _Picture:
    """An image, a JPEG file at 1 / `factor(height, width, turned)` of its size."""
    from PIL import Image

    if isinstance(item, Image.Image):
        pixels = _pixels(_eight_bits(item), channels)
        return _upright(pixels, pixels.shape[:2], pixels.shape[:2], item.getexif().get(ORIENTATION))
    if isinstance(item, (str, os.PathLike)):
        return _read_file(item, os.fspath(item), channels, factor)
    if isinstance(item, (bytes, bytearray)):
        return _read_file(item, f"of {len(item)} bytes", channels, factor)
    if hasattr(item, "__array__"):
        pixels = _decode_array(np.asarray(item), channels)
        return _upright(pixels, pixels.shape[:2], pixels.shape[:2], None)
    raise ValueError(f"cannot read an image from {kind(item)}: give a path, bytes, a PIL image or an array")


def _read_file(item: Any, name: str, channels: int, factor: Callable[[int, int, bool], int]) -> _Picture:
    from PIL import Image, UnidentifiedImageError

    try:
        data = item if isinstance(item, (bytes, bytearray)) else Path(item).read_bytes()
        orientation, whole = jpeg_orientation(data), []

        def by_header(height, width):
            whole.append((height, width))
            return factor(height, width, orientation in _TURNED)

        found = decode_jpeg(data, by_header)
        if found is not None:
            return _upright(_decode_array(found[0], channels), found[1], whole[0], orientation)
        with Image.open(BytesIO(data)) as image:
            height, width, orientation, by = image.height, image.width, image.getexif().get(ORIENTATION), 1
            if image.format in ("JPEG", "MPO"):
                by = factor(height, width, orientation in _TURNED)
                image.draft(image.mode, (width // by, height // by))
            pixels = _pixels(_eight_bits(image), channels)
            return _upright(pixels, (height / by, width / by), (height, width), orientation)
    except FileNotFoundError:
        raise FileNotFoundError(f"cannot read image {name}: no such file") from None
    except IsADirectoryError:
        raise UnreadableImage(name, "it is a folder, give one of its files") from None
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image file that Pillow knows") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _upright(
    pixels: np.ndarray, covered: tuple[float, float], extent: tuple[int, int], orientation: int | None
) -> _Picture:
    """Stored pixels, of which `covered` rows and columns are a picture of `extent`, turned as EXIF says (tag 274)."""
    # not ImageOps.exif_transpose: that also writes the EXIF block anew, which fails on a damaged one
    left, top, (bottom, right) = 0, 0, covered
    if orientation in _TURNED:
        pixels, bottom, right, extent = pixels.swapaxes(0, 1), right, bottom, extent[::-1]
    if orientation in (3, 4, 7, 8):
        pixels, top, bottom = pixels[::-1], len(pixels) - bottom, len(pixels)
    if orientation in (2, 3, 6, 7):
        pixels, left, right = pixels[:, ::-1], pixels.shape[1] - right, pixels.shape[1]
    return _Picture(np.ascontiguousarray(pixels), (left, top, right, bottom), tuple(extent))


def _eight_bits(image):
    """A PIL image of at most 8 bits a channel; Pillow's own convert() clips 16 bits at 255."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats: save them with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels go from {pixels.min()} to {pixels.max()}: save them with 8 or 16 bits")
        return Image.fromarray(_scale_16_bits(pixels))
    return image


def _scale_16_bits(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _pixels(image, channels: int) -> np.ndarray:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(image.height, image.width, channels)


def _decode_array(pixels: np.ndarray, channels: int) -> np.ndarray:
    from PIL import Image

    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"an image of shape {pixels.shape}: give (height, width) or (height, width, 1, 3 or 4)")
    check_pixels(pixels, "the image")
    if pixels.dtype == np.uint16:
        pixels = _scale_16_bits(pixels)
    if pixels.shape[-1] == 4:
        pixels = pixels[..., :3]
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    return _pixels(Image.fromarray(pixels), channels)


def check_pixels(pixels: np.ndarray, name: str) -> None:
    """Raise a ValueError with the fix for arrays that are neither uint8 nor uint16."""
    if pixels.dtype in (np.uint8, np.uint16):
        return
    if pixels.dtype == bool:
        fix = "give images.astype('uint8') * 255"
    elif np.issubdtype(pixels.dtype, np.floating) and pixels.max(initial=0) <= 1:
        fix = "give (images * 255).round().astype('uint8')"
    else:
        fix = "give images.clip(0, 255).astype('uint8')"
    raise ValueError(f"{name} holds {pixels.dtype}, but images are uint8 in 0..255: {fix}")


def presize(
    image: UInt8[np.ndarray, "height width channels"], size: int | tuple[int, int], resize: str = "crop"
) -> UInt8[np.ndarray, "h w channels"]:
    """Bring an image (height, width, channels) to `size`, a side or (height, width), with antialiasing.

    `resize`: "crop" cuts the largest central part of the right shape, "pad" keeps all of the image and reflects
    it at its borders, "squish" changes its proportions. Bilinear, as fastai's `Resize`.

    >>> presize(np.zeros((20, 30, 3), np.uint8), 10).shape
    (10, 10, 3)
    """
    return _presize(image, (0, 0, image.shape[1], image.shape[0]), pair(size), resize)


def _presize(
    image: np.ndarray, area: tuple[float, float, float, float], size: tuple[int, int], resize: str
) -> np.ndarray:
    """`presize` of the part `area` (left, top, right, bottom) of an image."""
    part = window(area, size, resize)
    if image.shape[:2] == size:
        return image
    return reflected(resample(image, part.inner, part.box), part, size)


class Window(NamedTuple):
    """The part `box` (left, top, right, bottom) of an image, in its pixels, becomes (height, width) `inner` pixels, the
    first of them at `corner` (row, column) of the result; what is left of the result is reflection."""

    box: tuple[float, float, float, float]
    inner: tuple[int, int]
    corner: tuple[int, int]


def window(area: tuple[float, float, float, float], size: tuple[int, int], resize: str) -> Window:
    """Where `presize` to `size` takes the part `area` (left, top, right, bottom) of an image; all that it shows of a
    mask or of key-points follows from this."""
    if resize not in RESIZES:
        raise ValueError(f"resize={resize!r} is unknown: give one of {', '.join(RESIZES)}")
    (height, width), (left, top, right, bottom) = size, area
    old_height, old_width = bottom - top, right - left
    if resize == "squish":
        return Window(area, size, (0, 0))
    if resize == "crop":
        scale = max(height / old_height, width / old_width)
        y, x = max((old_height - height / scale) / 2, 0), max((old_width - width / scale) / 2, 0)
        return Window((left + x, top + y, right - x, bottom - y), size, (0, 0))
    scale = min(height / old_height, width / old_width)
    inner = min(height, max(1, round(old_height * scale))), min(width, max(1, round(old_width * scale)))
    return Window(area, inner, tuple((outer - part) // 2 for outer, part in zip(size, inner, strict=True)))


def reflected(pixels: np.ndarray, part: Window, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a window in a result of `size`, mirrored at their borders where they do not fill it."""
    if part.inner == size:
        return pixels
    edges = [(start, outer - start - n) for start, n, outer in zip(part.corner, part.inner, size, strict=True)]
    return np.pad(pixels, edges + [(0, 0)] * (pixels.ndim - 2), mode="reflect")


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    height, width = (size, size) if np.ndim(size) == 0 else size
    return int(height), int(width)
