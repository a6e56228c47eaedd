"""What training data are, in a few words that a checkpoint keeps: enough to say what differs when it is read again."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SHORT = 1000
"""The longest list that is kept as it is, in characters of JSON; of longer lists, length and checksum are kept."""
SIZES = ("size", "view")
"""Entries of a codec that may change during a run: progressive resizing."""
LEARNT = (*SIZES, "resize", "median", "mean", "std", "lengths", "max_length")
"""Entries of a codec that parameters fit all the same: how items are read, and statistics of the training rows."""


def describe(data: Any) -> dict[str, Any]:
    """What of `data` a checkpoint remembers, as JSON: its codec by entry, its split, its batch size."""
    codec = getattr(data, "codec", None)
    stored = codec.to_json() if hasattr(codec, "to_json") else {"classes": [str(c) for c in data.classes or ()]}
    split = {name: _mark(dataset) for name, dataset in (("training", data.train), ("validation", data.valid))}
    return {"codec": dict(_entries(stored)), "split": split, "batch_size": data.batch_size}


def difference(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> str | None:
    """What the first difference of two codecs (`describe(...)["codec"]`) is, in words; None where there is none.

    >>> difference({"classes": ["cat", "dog"]}, {"classes": ["cat", "fox"]})
    'the classes were cat, dog and are cat, fox now'
    """
    entry = lambda path: path.rpartition("/")[2]
    paths = [*old, *(path for path in new if path not in old)]
    for path in sorted(paths, key=lambda path: entry(path) in LEARNT):  # names tell more than statistics
        if entry(path) in ignore:
            continue
        was, now = old.get(path), new.get(path)
        if not _alike(was, now):
            return f"{_words(path)} {_both(was, now)}"
    return None


def check_same(where: Any, old: Mapping[str, Any], new: Mapping[str, Any], advice: str) -> None:
    """Raise ValueError naming the difference if two `describe`d data are not the same, but for the image size."""
    found = difference(old["codec"], new["codec"], SIZES)
    for name, was in old["split"].items():
        now = new["split"][name]
        if found is None and was["examples"] != now["examples"]:
            found = f"there were {was['examples']} {name} examples and are {now['examples']} now"
        elif found is None and was != now:
            found = f"the {name} examples are others (another seed, or another valid=)"
    if found is None and old["batch_size"] != new["batch_size"]:
        found = f"batch_size was {old['batch_size']} and is {new['batch_size']} now"
    if found is not None:
        raise ValueError(f"{where} is of other data: {found}; {advice}")


def _mark(dataset: Any) -> dict[str, Any]:
    """How many examples a data set has, and a checksum of which ones: of their numbers and labels."""
    documents = getattr(dataset, "documents", None)
    arrays = [getattr(dataset, name, None) for name in ("index", "targets", "target")]
    arrays.append(getattr(documents, "offsets", None))
    total = 0
    for array in arrays:
        if isinstance(array, np.ndarray):
            total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, total)
    return {"examples": len(dataset), "checksum": f"{total:08x}"}


def _entries(stored: Any, path: str = ""):
    """The leaves of a codec's JSON with their paths; of a list of named things also the names, in order."""
    join = lambda name: f"{path}/{name}" if path else str(name)
    if isinstance(stored, Mapping):
        for name, value in stored.items():
            yield from _entries(value, join(name))
    elif isinstance(stored, (list, tuple)) and stored and all(isinstance(x, Mapping) and "name" in x for x in stored):
        yield from _entries([x["name"] for x in stored], join("names"))
        for x in stored:
            yield from _entries({name: value for name, value in x.items() if name != "name"}, join(x["name"]))
    else:
        value = list(stored) if isinstance(stored, (list, tuple)) else stored
        text = json.dumps(value, ensure_ascii=False, default=str)
        if len(text) > SHORT:
            value = {"number": len(stored), "checksum": f"{zlib.crc32(text.encode()):08x}"}
        yield path, value


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-5, equal_nan=True))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    return a == b


def _words(path: str) -> str:
    """The entry of a codec as its user calls it.

    >>> [_words(path) for path in ("classes", "categories/city/values", "numbers/names", "numbers/age/median")]
    ['the classes', "the values of column 'city'", 'the continuous columns', "the median of column 'age'"]
    """
    known = {
        "categories/names": "the categorical columns", "numbers/names": "the continuous columns",
        "target/names": "the targets", "target/classes": "the classes",
    }  # fmt: skip
    first, _, rest = path.partition("/")
    if path in known:
        return known[path]
    if first in ("categories", "numbers"):
        column, _, entry = rest.rpartition("/")
        return f"the {entry} of column {column!r}"
    return "the vocabulary" if first == "tokenizer" else f"the {path.replace('/', ' ')}"


def _both(was: Any, now: Any) -> str:
    if isinstance(was, dict) and isinstance(now, dict):
        numbers = was["number"], now["number"]
        return "are others" if numbers[0] == numbers[1] else f"were {numbers[0]} and are {numbers[1]} now"
    if isinstance(was, list) and isinstance(now, list):
        return f"were {_list(was)} and are {_list(now)} now"
    return f"was {_one(was)} and is {_one(now)} now"


def _list(values: list) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return (shown + f" and {len(values) - 10} more" if len(values) > 10 else shown) or "none"


def _one(value: Any) -> str:
    if isinstance(value, dict):
        return f"a list of {value['number']}"
    return _list(value) if isinstance(value, list) else str(value)
