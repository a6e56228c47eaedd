"""JPEG files decoded by simplejpeg, the extra `fast`: the pixels that Pillow gives, bit for bit, sooner.

Both are faces of libjpeg-turbo. At 1/2, 1/4 and 1/8 of the size it decodes from fewer frequencies of each block, which
costs less than all pixels and a filter over them, but lets high frequencies through that a filter stops: at half the
size, stripes of three pixels keep a standard deviation of 60 grey levels where bilinear resizing leaves 15. So a file
is decoded to no less than twice the size that is wanted, and resized from there (`reduction`). Photographs then differ
from those resized from all pixels by 0.2 to 0.9 levels in the mean, and by 15 at most.
"""

import functools
from collections.abc import Callable
from io import BytesIO
from types import ModuleType

import numpy as np

ORIENTATION = 0x0112
"""The EXIF tag of how a picture is turned."""


def decode_jpeg(data: bytes, factor: Callable[[int, int], int]) -> tuple[np.ndarray, tuple[float, float]] | None:
    """The pixels of a JPEG file as stored, RGB or grey, at 1 / `factor(height, width)` of its size, and how many of
    their rows and columns, in fractions, are picture.

    None for what Pillow has to read or to refuse: a file that is no JPEG, a damaged one, one in CMYK, one with more
    pixels than Pillow's limit, and any file where simplejpeg is not installed.
    """
    simplejpeg = _simplejpeg()
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    from PIL import Image

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in ("YCbCr", "RGB", "Gray") or height * width > (Image.MAX_IMAGE_PIXELS or float("inf")):
            return None
        by = factor(height, width)
        least = {"min_height": -(-height // by), "min_width": -(-width // by), "min_factor": by}
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if space == "Gray" else "RGB", **least)
    except ValueError:
        return None
    return pixels, (height / by, width / by)


def jpeg_orientation(data: bytes) -> int | None:
    """How the camera noted that the picture is turned (EXIF or XMP), without decoding it."""
    head = data[: data.find(b"\xff\xda")]  # up to the first scan
    if b"Exif\0\0" not in head and b"tiff:Orientation" not in head:
        return None
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        return image.getexif().get(ORIENTATION)


def reduction(height: int, width: int, size: tuple[int, int], resize: str) -> int:
    """By how much to decode a JPEG smaller, 1, 2, 4 or 8, so that it stays at least twice as large as it becomes when
    an image of (height, width) is brought to `size`."""
    ratios = height / size[0], width / size[1]
    ratio = max(ratios) if resize == "pad" else min(ratios)
    return max(by for by in (1, 2, 4, 8) if by == 1 or 2 * by <= ratio)


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ModuleNotFoundError:
        return None
    return simplejpeg
