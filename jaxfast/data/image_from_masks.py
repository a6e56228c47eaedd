"""Data of images with a mask each, in files."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxfast.data.image_data import ImageData, Size, Valid, image_data
from jaxfast.data.image_from import check_unmixed
from jaxfast.data.masks import Codes, Void, file_masks, mask_files
from jaxfast.data.sources import image_files
from jaxfast.messages import kind


def from_masks(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    masks: str | os.PathLike | Callable[[Path], str | os.PathLike] | Sequence[str | os.PathLike],
    *,
    codes: Codes,
    void: Void = None,
    valid: Valid = 0.2,
    seed: int = 42,
    size: Size = 224,
    presize: Size | None = None,
    batch_size: int = 64,
    augment: bool | Callable = True,
    resize: str = "crop",
    channels: int = 3,
    on_error: str = "raise",
) -> ImageData:
    """Images with a mask each, a file that holds a code for every pixel (segmentation).

    `images`: a folder, at any depth, or a list of files. `masks`: a folder in which the mask of an image lies as the
    image does in `images` (of a list: below the folder that holds them all), with .png; or a function from an image's
    path to its mask's; or a list of files. Masks are PNGs of 8 bits, grey or with a palette: their values are codes.
    `codes`: the names of the codes 0, 1, ...; {code: name}, such as {0: "background", 255: "cell"}; or a file with a
    name a line. `void`: the name or the code, or several, of pixels that count in no loss and no metric. The data's
    `classes` are the other codes in order, which masks number from 0 on, with 255 (`losses.VOID`) for void.
    `valid` as in `from_folder`, names being those below the folder. Masks are resized as their image is, by the nearest
    pixel, and `augment=True` moves them with it. The rest as in `from_folder`.

    Raises ValueError for a void that is not among the codes, codes out of range, masks of another size than their
    image, colour or 16 bits; up to 2000 masks are looked at now, of more each when it is read. FileNotFoundError for a
    mask that is not there.
    """
    if isinstance(images, (str, os.PathLike)):
        root, files = Path(images), image_files(images)
        if isinstance(masks, (str, os.PathLike)):  # which may lie in the same folder
            files = tuple(file for file in files if Path(masks) not in file.parents)
    else:
        wrong = [image for image in images if not isinstance(image, (str, os.PathLike))]
        if wrong or not len(images):
            what = f"holds {kind(wrong[0])}" if wrong else "is empty"
            raise ValueError(f"images= {what}: give a folder or a list of files; arrays go to from_arrays")
        files = tuple(Path(image) for image in images)
        root = Path(os.path.commonpath([file.parent for file in files]))
        missing = [file for file in files if not file.is_file()]
        if missing and on_error == "raise":
            raise FileNotFoundError(f"{len(missing)} of {len(files)} images are not there, such as {missing[0]}")
    names = [file.relative_to(root).as_posix() for file in files]
    check_unmixed(names, valid, root, folders=1)
    labels = file_masks(files, mask_files(files, masks, root), codes, void)
    return image_data(
        files, labels, names=names, named=True, valid=valid, seed=seed, size=size, presize=presize,
        batch_size=batch_size, augment=augment, resize=resize, channels=channels, on_error=on_error,
    )  # fmt: skip
