"""Bilinear resizing whose filter widens with the reduction, so that it does not alias.

By cykooz-resizer, the extra `fast`, where it is installed, else by Pillow, whose algorithm it has in vector
instructions: five times the speed, and pixels of which 11 to 17 in 100 differ by one level, and hardly any by two.
"""

import functools
import threading

import numpy as np

_local = threading.local()


def resample(pixels: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """The part `box` (left, top, right, bottom) of uint8 pixels (height, width, 1 or 3) at `size` (height, width)."""
    height, width = size
    if _convolution() is None:
        from PIL import Image

        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture).reshape(height, width, -1)
    import cykooz_resizer as cr

    if not hasattr(_local, "resizer"):
        _local.resizer = cr.Resizer()  # keeps its memory from one image to the next
    kind = cr.PixelType.U8 if pixels.shape[-1] == 1 else cr.PixelType.U8x3
    source = cr.ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
    result = cr.ImageData(width, height, kind)
    left, top, right, bottom = box
    crop = cr.CropBox(left, top, right - left, bottom - top)
    _local.resizer.resize(source, result, cr.ResizeOptions(_convolution(), False, crop))
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(height, width, -1)


@functools.cache
def _convolution():
    """What cykooz-resizer calls Pillow's bilinear filter; None where it is not installed."""
    try:
        import cykooz_resizer as cr
    except ModuleNotFoundError:
        return None
    return cr.ResizeAlg.convolution(cr.FilterType.bilinear)
