"""Where images come from: files below a folder, and anything with len and getitem."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxfast.messages import first

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif",
)  # fmt: skip


def image_files(path: str | os.PathLike) -> tuple[Path, ...]:
    """All image files below a folder, at any depth, in the order of their relative paths.

    Hidden files and folders are left out; links are followed. Raises FileNotFoundError where there is no such
    folder, ValueError where it holds no images.
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}: give the folder that holds the images")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: give the folder that holds the images (unpack an archive first)")
    found, others = [], 0
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in files:
            if name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith("."):
                found.append(Path(folder, name))
            else:
                others += 1
    if not found:
        kinds = ", ".join(IMAGE_EXTENSIONS)
        raise ValueError(f"no images in {root} or its folders: looked for {kinds}, found {others} other files")
    return tuple(sorted(found, key=lambda file: file.relative_to(root).parts))


class SourceImages:
    """The images of a source, without their labels."""

    def __init__(self, source: Any):
        self.source = source

    def __getitem__(self, i: int) -> Any:
        return image_and_label(self.source, i)[0]


def image_and_label(source: Any, i: int) -> tuple[Any, Any]:
    """Example i of a source; raises ValueError where it is neither a pair nor a dict of both."""
    example = source[int(i)]
    if isinstance(example, dict) and {"image", "label"} <= example.keys():
        return example["image"], example["label"]
    if isinstance(example, (tuple, list)) and len(example) == 2:
        return example[0], example[1]
    what = f"a dict of {first(list(example))}" if isinstance(example, dict) else f"a {type(example).__name__}"
    raise ValueError(f'example {i} of the source is {what}: give (image, label) or {{"image": ..., "label": ...}}')


def tracked(items: Iterable[Any], title: str, show: bool, total: int | None = None) -> Iterable[Any]:
    """`items`, with a progress bar where `show` is true and the output is a terminal."""
    from rich.console import Console
    from rich.progress import track

    return track(items, title, total, transient=True, disable=not (show and Console().is_terminal))
