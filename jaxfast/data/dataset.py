"""The data set of images and targets: one split, decoded in threads."""

import functools
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxfast.data.images import UnreadableImage, read_sized
from jaxfast.data.masks import Masks
from jaxfast.data.points import Points
from jaxfast.data.sources import tracked
from jaxfast.messages import first


@functools.cache
def _decoders() -> ThreadPoolExecutor | None:
    """The threads that decode for all data sets of this process; None in a worker of a data loader (a daemon), which
    decodes by itself: there are as many workers as there is to do at once."""
    if multiprocessing.current_process().daemon:
        return None
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), "decode")


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images and their targets, one size for all: example i is `items[index[i]]` with `targets[i]`.

    `items` is a sequence of what `images.decode` takes, or one array of images, and is read from several threads.
    `targets` is int32 (n,), float32 (n, k), or `Masks` or `Points`, which are read as their image is; `size` is
    (height, width) in pixels.
    """

    items: Sequence[Any]
    index: np.ndarray
    targets: np.ndarray | Masks | Points
    size: tuple[int, int]
    resize: str = "crop"
    channels: int = 3

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        image, target = self._load(i)
        return {"image": image, "target": target}

    def __repr__(self) -> str:
        height, width = self.size
        return f"ImageDataset: {len(self)} images of {height}x{width} pixels, {self.channels} channels"

    @property
    def nbytes(self) -> int:
        """Bytes of all images and targets once decoded."""
        targets = self.targets.nbytes if self._labelled else self.targets.nbytes(self.size)
        return len(self) * self.size[0] * self.size[1] * self.channels + targets

    def path(self, i: int) -> Path | None:
        """The file of example i, or None where images do not come from files."""
        item = self.items[self.index[i]]
        return Path(item) if isinstance(item, (str, os.PathLike)) else None

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Stack the examples at `indices`: "image" (n, height, width, channels) and "target".

        Raises ValueError that names the images which cannot be read.
        """
        indices = np.asarray(indices, int)
        if self._ready:
            images = self.items[self.index[indices]].reshape(len(indices), *self.size, -1)
            images = np.repeat(images, self.channels // images.shape[-1], axis=-1)
            targets = () if self._labelled else [self._target(i, self.size) for i in indices]
        else:
            images = np.empty((len(indices), *self.size, self.channels), np.uint8)
            targets, failures = [], {}
            for row, result in enumerate(self.try_each(indices)):
                if isinstance(result, Exception):
                    failures[self._name(indices[row])] = _reason(result)
                else:
                    images[row] = result[0]
                    targets.append(result[1])
            if failures:
                named = [f"{name} ({reason})" for name, reason in failures.items()]
                raise ValueError(
                    f"cannot read {len(failures)} of the {len(indices)} images of a batch: {first(named)}; "
                    'remove them, or pass on_error="skip"'
                )
        return {"image": images, "target": self.targets[indices] if self._labelled else np.stack(targets)}

    def try_each(self, indices: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray] | Exception]:
        """Each image at `indices` in order with its target, or the error in its place, decoded in threads."""
        from PIL import Image

        def attempt(i):
            try:
                return self._load(i)
            except (UnreadableImage, FileNotFoundError) as error:
                return error

        Image.init()  # load Pillow's plugins before the threads do: two at once can miss a format
        pool = _decoders()
        yield from map(attempt, indices) if pool is None else pool.map(attempt, indices)

    def unreadable(self) -> dict[int, str]:
        """Decode every image; which cannot be read, and their names. Shows a progress bar when there are many."""
        steps = [np.arange(start, min(start + 256, len(self))) for start in range(0, len(self), 256)]
        return {
            int(i): self._name(i)
            for step in tracked(steps, "looking for unreadable images", len(steps) > 8)
            for i, result in zip(step, self.try_each(step), strict=True)
            if isinstance(result, Exception)
        }

    def _load(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The image and the target of example i, read at the same time."""
        image, extent = read_sized(self.items[self.index[i]], self.size, self.resize, self.channels)
        return image, self._target(i, extent)

    def _target(self, i: int, extent: tuple[int, int]) -> np.ndarray:
        return self.targets[i] if self._labelled else self.targets.read(i, extent, self.size, self.resize)

    @property
    def _labelled(self) -> bool:
        """Whether the targets are labels or numbers, the same however the images are resized."""
        return isinstance(self.targets, np.ndarray)

    @property
    def _ready(self) -> bool:
        """Whether the items are one array of images that need no decoding or resizing."""
        if not isinstance(self.items, np.ndarray) or self.items.dtype != np.uint8:
            return False
        return self.items.shape[1:] in (self.size, (*self.size, 1), (*self.size, self.channels))

    def _name(self, i: int) -> str:
        path = self.path(i)
        return f"image {self.index[i]}" if path is None else str(path)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, UnreadableImage) else "no such file"
