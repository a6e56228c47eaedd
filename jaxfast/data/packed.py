"""Packed images: presized JPEGs in ArrayRecord files, shards, beside an index; what `pack` writes, read in any order.

`index.jsonl` holds one JSON object a line: first what was packed and how, then each shard that is finished, with its
size, checksum, labels, names and what was skipped. A line is added when its shard is whole, so that a pack that was
broken off can go on; of two lines for a shard the later one counts.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfast._extras import need
from jaxfast.data.labels import Labels

INDEX = "index.jsonl"
VERSION = 1


class Shard(NamedTuple):
    """A finished shard: `labels` are class numbers or lists of them, `skipped` what could not be read, and why."""

    number: int
    file: str
    bytes: int
    sha256: str
    labels: list
    names: list[str] | None
    skipped: dict[str, str]


class Index(NamedTuple):
    """What the index of a pack says: the settings, and the finished shards by number."""

    settings: dict[str, Any]
    shards: dict[int, Shard]

    @property
    def whole(self) -> bool:
        """Whether every shard is finished."""
        return len(self.shards) == self.settings["shards"]

    @property
    def skipped(self) -> dict[str, str]:
        """What could not be read, and why."""
        return {name: why for _, shard in sorted(self.shards.items()) for name, why in shard.skipped.items()}


def read_index(folder: str | os.PathLike) -> Index | None:
    """The index of a pack, or None where there is none; half a line at its end is left out.

    ValueError for a file that is no index.
    """
    path = Path(folder, INDEX)
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if not lines:
            return None
        if lines[0]["pack"] != VERSION:
            raise ValueError(lines[0]["pack"])
        return Index(lines[0], {line["number"]: Shard(**line) for line in lines[1:]})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or no index of a pack: remove the folder and pack again") from error


class PackedImages:
    """The bytes of image `i` of a pack, for any number of threads; a copy in another process opens its own files."""

    def __init__(self, folder: str | os.PathLike, shards: list[Shard]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.paths = [os.path.join(folder, shard.file) for shard in shards]
        self.ends = np.cumsum([len(shard.labels) for shard in shards])
        parts = [
            _Part(path, 0, len(shard.labels), len(shard.labels)) for path, shard in zip(self.paths, shards, strict=True)
        ]
        self.source = ArrayRecordDataSource(parts)

    def __getitem__(self, i: int) -> bytes:
        try:
            return self.source[int(i)]
        except Exception as error:  # what a damaged file makes the reader raise differs by the damage
            path = self.paths[int(np.searchsorted(self.ends, i, side="right"))]
            raise ValueError(f"shard {path} is damaged: {_AGAIN}") from error


class _Part(NamedTuple):
    """What to read of which file, as the data source wants it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


_AGAIN = "copy it again, or pack again with the same command, which renews damaged shards"


class PackedExamples(NamedTuple):
    """All that a pack holds: images by number, labels, names or None, the size of the images (height, width)."""

    images: PackedImages
    labels: Labels
    names: list[str] | None
    size: tuple[int, int]


def read_packed(folder: str | os.PathLike) -> PackedExamples:
    """Open a pack: labels now, images when asked for.

    Raises FileNotFoundError where there is no pack or a shard is missing, ValueError for a pack that is not finished
    and a shard of another size than its own.
    """
    need("array_record", extra="packed", purpose="packed images")
    index = read_index(folder)
    if index is None:
        raise FileNotFoundError(f"no pack in {folder}: it has no {INDEX}; make one with python -m jaxfast.data.pack")
    if not index.whole:
        raise ValueError(
            f"the pack in {folder} is not finished, {len(index.shards)} of {index.settings['shards']} shards are: "
            "go on with the command that began it"
        )
    shards = [index.shards[number] for number in sorted(index.shards) if index.shards[number].labels]
    if not shards:
        raise ValueError(f"the pack in {folder} holds no image, {len(index.skipped)} could not be read")
    for shard in shards:
        path = Path(folder, shard.file)
        if not path.is_file():
            raise FileNotFoundError(f"shard {path} is missing: {_AGAIN}")
        if path.stat().st_size != shard.bytes:
            raise ValueError(f"shard {path} has {path.stat().st_size} bytes, it was {shard.bytes}: {_AGAIN}")
    numbers = [label for shard in shards for label in shard.labels]
    classes, task = tuple(index.settings["classes"]), index.settings["task"]
    if task == "multi_label":
        targets = np.zeros((len(numbers), len(classes)), np.float32)
        for row, on in enumerate(numbers):
            targets[row, on] = 1
    else:
        targets = np.array(numbers, np.int32)
    names = None if shards[0].names is None else [name for shard in shards for name in shard.names]
    size = index.settings["height"], index.settings["width"]
    return PackedExamples(PackedImages(folder, shards), Labels(targets, classes, task), names, size)


def checksum(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
