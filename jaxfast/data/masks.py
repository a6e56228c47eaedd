"""Masks: a class for every pixel, from files or arrays of codes, brought to the size of their images.

What a mask file holds are codes, whatever whole numbers its author chose. A table of 256 entries takes them to class
numbers 0, 1, ... and to `losses.VOID`, which no loss and no metric counts. Neither interpolation nor colour touches
them: a palette's colours are for people, its indices are the codes.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfast.data.images import UnreadableImage, image_extent, reflected, window
from jaxfast.data.jpeg import ORIENTATION
from jaxfast.data.labels import Labels, check_classes
from jaxfast.data.sources import tracked
from jaxfast.messages import first, kind, nearest

UNKNOWN = 254
"""What the table gives for a code that has no name."""
SCANNED = 2000
"""So many mask files are looked at when the data is made; of more, each when it is read."""

Codes = Sequence[str] | Mapping[int, str] | str | os.PathLike
Void = int | str | Sequence[int | str] | None


class CodeTable(NamedTuple):
    """`classes` are the names without void; `table`, uint8 (256,), gives a code's class number, VOID or UNKNOWN."""

    classes: tuple[str, ...]
    table: np.ndarray
    known: str


def code_table(codes: Codes, void: Void = None) -> CodeTable:
    """The classes of `codes` and the way from a code to its class.

    `codes`: names, of which the one at place i is that of the code i; {code: name}; or a file with a name a line.
    `void`: names or codes of pixels that belong to no class; a code need not have a name.

    >>> code_table(["sky", "void", "road"], void="void").table[:4].tolist()
    [0, 255, 1, 254]
    """
    from jaxfast.losses import VOID  # here and not above, so that load_export needs no optax

    if isinstance(codes, (str, os.PathLike)):
        if not Path(codes).is_file():
            raise FileNotFoundError(f"codes={os.fspath(codes)!r} is no file: give one with a name a line, or the names")
        codes = [line.strip() for line in Path(codes).read_text(encoding="utf-8").splitlines() if line.strip()]
    named = dict(codes) if isinstance(codes, Mapping) else dict(enumerate(codes))
    wrong = [code for code in named if not _is_code(code)]
    if wrong:
        raise ValueError(f"codes= names the code {first(wrong, 1)}: codes of masks are whole numbers from 0 to 255")
    names = check_classes(list(named.values()))
    void = () if void is None else (void,) if isinstance(void, (int, np.integer, str)) else tuple(void)
    ignored = set()
    for entry in void:
        if not _is_code(entry) and str(entry) not in names:
            raise ValueError(
                f"void={entry!r} is not among the codes, which are {first(names, 20)}{nearest(entry, names)}"
            )
        ignored.add(int(entry) if _is_code(entry) else list(named)[names.index(str(entry))])
    kept = [code for code in named if code not in ignored]
    classes = tuple(str(named[code]) for code in kept)
    if not 2 <= len(kept) < UNKNOWN:
        said = f"one class only, {classes[0]!r}" if len(kept) == 1 else f"{len(kept)} classes"
        raise ValueError(f"the codes leave {said} without void: training takes from 2 to {UNKNOWN - 1}, name them all")
    table = np.full(256, UNKNOWN, np.uint8)
    table[kept] = np.arange(len(kept))
    table[list(ignored)] = VOID
    gapless = list(named) == list(range(len(named)))
    known = f"0 to {len(named) - 1}" if gapless else first(list(named), 10)
    return CodeTable(classes, table, known)


def read_codes(path: str | os.PathLike) -> np.ndarray:
    """The codes of a mask file, uint8 (height, width), upright: palette indices, or grey values as they were saved.

    Raises ValueError for colour, more than 8 bits and JPEG, UnreadableImage for what is no image, or gone.
    """
    from PIL import Image, UnidentifiedImageError

    name = os.fspath(path)
    try:
        with Image.open(path) as image:
            mode, form = image.mode, image.format
            # Pillow spreads the grey values of 2 and 4 bits over 0..255; the codes are what was spread
            spread = {"L;2": 85, "L;4": 17}.get(image.tile[0][3] if image.tile else None, 1)
            orientation = image.getexif().get(ORIENTATION)
            codes = np.asarray(image) if mode in ("1", "L", "P") and form not in ("JPEG", "MPO") else None
    except FileNotFoundError:
        raise UnreadableImage(name, f"its mask {name} is gone") from None
    except UnidentifiedImageError:
        raise UnreadableImage(name, f"its mask {name} is not an image file that Pillow knows") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise UnreadableImage(name, f"its mask {name} is broken: {error or type(error).__name__}") from error
    if codes is None:
        what = "a JPEG, which changes codes" if form in ("JPEG", "MPO") else f"{_MODES.get(mode, 'in colour')} ({mode})"
        raise ValueError(f"mask {name} is {what}: save the codes as a PNG of 8 bits, grey or with a palette")
    codes = codes.astype(np.uint8) // np.uint8(spread)
    if orientation in (5, 6, 7, 8):
        codes = codes.T
    if orientation in (3, 4, 7, 8):
        codes = codes[::-1]
    if orientation in (2, 3, 6, 7):
        codes = codes[:, ::-1]
    return codes


_MODES = {"I": "of 16 bits or more", "F": "of floats", "LA": "grey with transparency"}
_MODES |= dict.fromkeys(("I;16", "I;16B", "I;16L"), "of 16 bits")


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of one split, by number: example i is `items[index[i]]`, a file of codes or one row of an array of
    class numbers (n, height, width)."""

    items: Sequence[Any] | np.ndarray
    index: np.ndarray
    codes: CodeTable

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: np.ndarray) -> "Masks":
        return replace(self, index=self.index[rows])

    def nbytes(self, size: tuple[int, int]) -> int:
        """Bytes of all masks at `size`."""
        return len(self) * size[0] * size[1]

    def read(self, i: int, extent: tuple[int, int], size: tuple[int, int], resize: str) -> np.ndarray:
        """The classes of example i, uint8 `size`: the pixel nearest to each of an image of `extent`, presized alike.

        Raises ValueError for a mask of another size than the image and for a code without a name.
        """
        item = self.items[self.index[i]]
        classes = item if isinstance(self.items, np.ndarray) else self._classes(item, read_codes(item), extent)
        height, width = extent
        part = window((0, 0, width, height), size, resize)
        left, top, right, bottom = part.box
        rows = _nearest(top, bottom, part.inner[0], height)
        columns = _nearest(left, right, part.inner[1], width)
        return reflected(classes[rows[:, None], columns], part, size)

    def _classes(self, path: Any, codes: np.ndarray, extent: tuple[int, int]) -> np.ndarray:
        check_extent(f"mask {os.fspath(path)}", codes.shape, extent)
        return to_classes(codes, self.codes, f"mask {os.fspath(path)}")


def to_classes(codes: np.ndarray, table: CodeTable, name: str) -> np.ndarray:
    """Class numbers of codes (uint8); ValueError, with the `name` of the mask, for a code that has no name."""
    classes = table.table[codes]
    if (classes == UNKNOWN).any():
        wrong = int(codes[classes == UNKNOWN][0])
        raise ValueError(f"{name} holds code {wrong}, but the codes are {table.known}: name it, or say void={wrong}")
    return classes


def check_extent(name: str, shape: tuple[int, ...], extent: tuple[int, int]) -> None:
    """ValueError for a mask that is not as large as its image."""
    if tuple(shape) != tuple(extent):
        raise ValueError(
            f"{name} has {shape[0]}x{shape[1]} pixels, its image {extent[0]}x{extent[1]} (height x width): "
            "make the mask as large as its image"
        )


def mask_files(images: Sequence[Path], masks: Any, root: Path) -> list[Path]:
    """The mask of every image: from a function of its path, a list, or a folder in which it lies as the image lies
    below `root`, with .png. Raises ValueError for lists of unequal length, FileNotFoundError for a missing mask."""
    if callable(masks):
        files = [masks(image) for image in images]
        wrong = [i for i, file in enumerate(files) if not isinstance(file, (str, os.PathLike))]
        if wrong:
            given = kind(files[wrong[0]])
            raise ValueError(f"masks= gives {given} for {images[wrong[0]]}: return the path of its mask")
        files = [Path(file) for file in files]
    elif isinstance(masks, (str, os.PathLike)):
        if not Path(masks).is_dir():
            raise FileNotFoundError(f"there is no folder {masks}: give the folder of the masks, or a function")
        files = [Path(masks, image.relative_to(root)).with_suffix(".png") for image in images]
    else:
        files = [Path(file) for file in masks]
        if len(files) != len(images):
            raise ValueError(f"{len(images)} images, but {len(files)} masks: give one mask for each image")
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    if missing:
        image, file = images[missing[0]], files[missing[0]]
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} masks are not there, such as {file} of {image}: "
            "add them, leave their images out, or give masks= as a function from image to mask"
        )
    return files


def file_masks(images: Sequence[Any], files: Sequence[Path], codes: Codes, void: Void) -> Labels:
    """The masks in `files`, one for each of `images`; up to SCANNED of them are looked at now.

    Raises ValueError, beside those of `code_table` and `Masks.read`, where all that was looked at is of one class.
    """
    table = code_table(codes, void)
    masks = Masks(list(files), np.arange(len(files)), table)
    if len(files) <= SCANNED:
        from PIL import Image

        def look(i: int) -> np.ndarray:
            try:
                raw = read_codes(files[i])
                seen = masks._classes(files[i], raw, image_extent(images[i]) or raw.shape)
            except (UnreadableImage, FileNotFoundError):  # a matter of on_error
                return np.zeros(256, int)
            return np.bincount(seen.ravel(), minlength=256)

        Image.init()  # load Pillow's plugins before the threads do: two at once can miss a format
        with ThreadPoolExecutor() as pool:
            counts = sum(tracked(pool.map(look, range(len(files))), "looking at masks", len(files) > 500, len(files)))
        check_several(counts, table.classes, "the masks")
    return Labels(masks, table.classes, "segmentation")


def array_masks(images: np.ndarray, masks: np.ndarray, classes: Iterable[Any] | None, void: Void) -> Labels:
    """Masks (n, height, width) of codes beside images of their size, turned into class numbers now."""
    if masks.dtype == bool:
        masks = masks.astype(np.uint8)
    if masks.dtype.kind not in "iu":
        raise ValueError(f"masks hold {masks.dtype}: codes are whole numbers, give masks.astype('uint8')")
    if masks.ndim != 3:
        raise ValueError(f"masks of shape {masks.shape}: give (n, height, width)")
    if masks.shape[1:] != images.shape[1:3]:
        check_extent("a mask", masks.shape[1:], images.shape[1:3])
    outside = np.argwhere((masks < 0) | (masks > 255)) if masks.dtype != np.uint8 else ()
    if len(outside):
        raise ValueError(f"the mask of image {outside[0][0]} holds {masks[tuple(outside[0])]}: codes are 0 to 255")
    masks = masks.astype(np.uint8)
    if classes is None:
        ignored = {int(code) for code in np.atleast_1d(() if void is None else void)}
        found = sorted(set(np.unique(masks).tolist()) - ignored)
        gaps = sorted(set(range(len(found))) - set(found))
        if gaps:
            raise ValueError(f"masks hold {first(found)}, but no {gaps[0]}: name the codes, classes={{code: name}}")
        check_several(np.bincount(found, minlength=256), [str(code) for code in found], "the masks")
        classes = [str(code) for code in found]
    table = code_table(classes, void)
    wrong = np.flatnonzero([(table.table[np.unique(mask)] == UNKNOWN).any() for mask in masks])
    if len(wrong):
        to_classes(masks[wrong[0]], table, f"the mask of image {wrong[0]}")
    numbers = table.table[masks]
    check_several(np.bincount(numbers.ravel(), minlength=256), table.classes, "the masks")
    return Labels(Masks(numbers, np.arange(len(numbers)), table), table.classes, "segmentation")


def check_several(counts: np.ndarray, classes: Sequence[str], source: str) -> None:
    """ValueError where pixels are counted and all are of one class."""
    there = np.flatnonzero(counts[: len(classes)])
    if counts.any() and len(there) < 2:
        what = f"one class only, {classes[there[0]]!r}" if len(there) else "void only"
        raise ValueError(f"{source} hold {what}: training needs at least two classes")


def _nearest(low: float, high: float, n: int, extent: int) -> np.ndarray:
    """The pixels under the centres of `n` parts of low..high."""
    centres = low + (np.arange(n) + 0.5) * (high - low) / n
    return np.clip(np.floor(centres).astype(int), 0, extent - 1)


def _is_code(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value <= 255
