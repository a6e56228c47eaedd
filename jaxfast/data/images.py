"""Images on the host: decoding to uint8 and resizing to one fixed size.

Nothing here is random: the host gives the same bits at every call, and the device randomises.
"""

import os
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8

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
    from PIL import Image

    if isinstance(item, Image.Image):
        return _decode_picture(item, channels)
    if isinstance(item, (str, os.PathLike)):
        return _decode_file(item, os.fspath(item), channels)
    if isinstance(item, (bytes, bytearray)):
        return _decode_file(BytesIO(item), f"of {len(item)} bytes", channels)
    if hasattr(item, "__array__"):
        return _decode_array(np.asarray(item), channels)
    kind = type(item).__name__
    raise ValueError(f"cannot read an image from a {kind}: give a path, bytes, a PIL image or an array")


def _decode_file(item: Any, name: str, channels: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(item) as image:
            return _decode_picture(image, channels)
    except FileNotFoundError:
        raise FileNotFoundError(f"cannot read image {name}: no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImage(name, "not an image file that Pillow knows") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise UnreadableImage(name, str(error) or type(error).__name__) from error


def _decode_picture(image, channels: int) -> np.ndarray:
    """The pixels of a PIL image, upright."""
    # not ImageOps.exif_transpose: that also writes the EXIF block anew, which fails on a damaged one
    from PIL.Image import Transpose

    orientation = image.getexif().get(0x0112)
    change = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    image = _eight_bits(image)
    return _pixels(image if change is None else image.transpose(change), channels)


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
    from PIL import Image

    height, width = pair(size)
    old_height, old_width, channels = image.shape
    if (old_height, old_width) == (height, width):
        return image
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    if resize == "crop":
        scale = max(height / old_height, width / old_width)
        top, left = (old_height - height / scale) / 2, (old_width - width / scale) / 2
        box = (max(left, 0), max(top, 0), min(old_width - left, old_width), min(old_height - top, old_height))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    elif resize == "squish":
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    elif resize == "pad":
        scale = min(height / old_height, width / old_width)
        inner = min(height, max(1, round(old_height * scale))), min(width, max(1, round(old_width * scale)))
        picture = picture.resize(inner[::-1], Image.Resampling.BILINEAR)
        top, left = ((outer - part) // 2 for outer, part in zip((height, width), inner, strict=True))
        edges = ((top, height - inner[0] - top), (left, width - inner[1] - left), (0, 0))
        return np.pad(np.asarray(picture).reshape(*inner, channels), edges, mode="reflect")
    else:
        raise ValueError(f"resize={resize!r} is unknown: give one of {', '.join(RESIZES)}")
    return np.asarray(picture).reshape(height, width, channels)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    height, width = (size, size) if np.ndim(size) == 0 else size
    return int(height), int(width)
