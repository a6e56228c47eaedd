"""Which examples train and which validate: by fraction, by index, by folder or by name."""

import os
import posixpath
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfast.messages import check_whole, first, nearest

_KINDS = "a fraction such as 0.2, an index array, a folder name or a list of file names"


def split_indices(
    n: int,
    valid: float | str | Sequence[Any] | np.ndarray,
    *,
    seed: int = 42,
    labels: np.ndarray | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the training and of the validation examples, each in ascending order.

    `valid` is one of
    - a fraction: drawn with `seed`, from every class of `labels` (n,) alike, at least one of a class that has two;
    - an index array, of integers or of booleans (n,);
    - a folder: what lies below it in `names`; what lies below "train" trains, if anything does, else the rest;
    - a list of file names or of paths as in `names`.
    `names` are paths with forward slashes. Raises ValueError for a `valid` that fits nothing, names an example twice
    or leaves either part empty, and for a file that is in both parts.
    """
    check_whole("seed", seed, 0)
    if isinstance(valid, (float, np.floating)):
        if not 0 < valid < 1:
            raise ValueError(f"valid={valid}: a fraction lies between 0 and 1, such as 0.2")
        chosen = _draw(n, valid, seed, labels)
        train = np.setdiff1d(np.arange(n), chosen)
    elif isinstance(valid, str):
        train, chosen = _by_folder(valid, _need(names, valid))
    elif isinstance(valid, (bool, int)) or valid is None or np.ndim(valid) != 1:
        raise ValueError(f"valid={_short(valid)}: give {_KINDS}")
    else:
        chosen = _by_list(valid, n, names)
        train = np.setdiff1d(np.arange(n), chosen)
    for part, name in ((train, "train"), (chosen, "validate")):
        if not len(part):
            raise ValueError(f"valid={_short(valid)} leaves none of the {n} examples to {name}")
    if names is not None:
        both = {posixpath.normpath(names[i]) for i in train} & {posixpath.normpath(names[i]) for i in chosen}
        if both:
            raise ValueError(f"{first(sorted(both))}: in the training and in the validation set; list a file once")
    return train, chosen


def _draw(n: int, fraction: float, seed: int, labels: np.ndarray | None) -> np.ndarray:
    if n < 2:
        raise ValueError(f"{n} example cannot be split: give at least 2")
    labels = np.zeros(n, int) if labels is None else labels
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sizes = np.array([len(member) for member in members])
    # largest remainders: the total is right, and no class is off by a whole example but for the guarantee of one
    quota = sizes * fraction
    low, high = (sizes >= 2).astype(int), sizes - 1
    counts = np.clip(np.floor(quota).astype(int), low, high)
    spare = max(round(n * fraction), 1) - counts.sum()
    for i in np.argsort(counts - quota, kind="stable"):
        if spare > 0 and counts[i] < min(high[i], quota[i]):
            counts[i] += 1
            spare -= 1
    drawn = [rng.permutation(member)[:count] for member, count in zip(members, counts, strict=True)]
    return np.sort(np.concatenate(drawn))


def _by_folder(folder: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    below = lambda top: np.flatnonzero([posixpath.normpath(name).startswith(top + "/") for name in names])
    chosen, train = below(folder.strip("/")), below("train")
    if not len(chosen):
        folders = sorted({name.split("/")[0] for name in names if "/" in name})
        raise ValueError(
            f"valid={folder!r}: no image lies below that folder; the folders are {first(folders)}"
            f"{nearest(folder, folders)}"
        )
    return (train if len(train) else np.setdiff1d(np.arange(len(names)), chosen)), chosen


def _by_list(valid: Sequence[Any], n: int, names: Sequence[str] | None) -> np.ndarray:
    valid = [os.fspath(entry) if isinstance(entry, os.PathLike) else entry for entry in valid]
    given = np.asarray(valid)
    if not given.size:
        raise ValueError(f"valid is empty: give {_KINDS}")
    if given.dtype.kind == "U":
        return _by_name(given.tolist(), _need(names, given.tolist()))
    if given.dtype == bool:
        if len(given) != n:
            raise ValueError(f"valid holds {len(given)} booleans for {n} examples: give one each")
        return np.flatnonzero(given)
    if given.dtype.kind not in "iu":
        raise ValueError(f"valid holds {given.dtype}, such as {given.ravel()[0]}: give {_KINDS}")
    wrong = given[(given < 0) | (given >= n)]
    if len(wrong):
        raise ValueError(f"valid holds the index {wrong[0]}, but the {n} examples count from 0 to {n - 1}")
    chosen, counts = np.unique(given, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"valid holds the index {chosen[counts.argmax()]} twice: list an example once")
    return chosen


def _by_name(wanted: list[str], names: Sequence[str]) -> np.ndarray:
    paths, files = {}, {}
    for i, name in enumerate(names):
        path = posixpath.normpath(name)
        paths.setdefault(path, []).append(i)
        files.setdefault(posixpath.basename(path), []).append(i)
    chosen = []
    for name in wanted:
        path = posixpath.normpath(name)
        found = paths.get(path) or files.get(path)
        if not found:
            raise ValueError(
                f"valid names {name!r}, which is not among the {len(names)} images{nearest(name, [*paths, *files])}"
            )
        if len(found) > 1:
            both = first([names[i] for i in found])
            raise ValueError(f"valid names {name!r}, which fits {len(found)} images ({both}): give paths with folders")
        chosen += found
    return np.unique(chosen)


def _need(names: Sequence[str] | None, valid: Any) -> Sequence[str]:
    if names is None:
        raise ValueError(f"valid={_short(valid)}: these images have no file names; give a fraction or an index array")
    return names


def _short(valid: Any) -> str:
    text = " ".join(repr(valid).split())
    return text if len(text) <= 60 else text[:60] + "..."
