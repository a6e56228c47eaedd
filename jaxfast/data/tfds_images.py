"""Prepared data sets of TensorFlow Datasets, read from their ArrayRecord files without TensorFlow.

A record is read when it is asked for, and gives the bytes of the image file that was put in: `decode` reads them as
it reads any other image.
"""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from jaxfast._extras import need
from jaxfast.data.labels import Labels, label_classes
from jaxfast.data.sources import tracked
from jaxfast.messages import first, nearest

ARRAY_RECORD = "array_record"


class TfdsImages:
    """The bytes of image `i` of a data source, read from its record by any number of threads."""

    def __init__(self, tfds: ModuleType, source: Any, feature: Any):
        self.source = source
        self.features = tfds.features.FeaturesDict({"image": feature})
        self.decoders = {"image": tfds.decode.SkipDecoding()}

    def __getitem__(self, i: int) -> bytes:
        return self.features.deserialize_example_np(self.source[int(i)], decoders=self.decoders)["image"]


class TfdsExamples(NamedTuple):
    """Images and their labels, of which the first `n_train` are those of the training split."""

    images: TfdsImages
    labels: Labels
    n_train: int


def read_tfds(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None,
    *,
    split: str,
    valid: str | None,
    image: str,
    label: str,
) -> TfdsExamples:
    """The examples of `split`, then those of the split `valid` if there is one: labels now, images when asked for.

    Raises FileNotFoundError for a data set that is not prepared, ValueError for another format than ArrayRecord, for
    unknown features and splits, for splits that overlap, and for examples without a label.
    """
    tfds = need("tensorflow_datasets", extra="tfds", purpose="TensorFlow's data sets")
    folder = prepared_folder(name, data_dir)
    command = prepare_command(name, data_dir)
    builder = _open(tfds, folder, command)
    info, class_label = builder.info, tfds.features.ClassLabel
    _check_feature(name, info.features, "image", image, "images of 8 or 16 bits", lambda f: _is_picture(tfds, f))
    _check_feature(name, info.features, "label", label, "class labels", lambda f: isinstance(f, class_label))
    splits = [split] if valid is None else [split, valid]
    files = [_files(name, info, *given) for given in zip(("split", "valid"), splits, strict=False)]
    shared = sum(_overlap(a, b) for a in files[0] for b in files[-1]) if len(files) == 2 else 0
    if shared:
        raise ValueError(
            f"split={split!r} and valid={valid!r} have {shared} examples in common: "
            "give other splits, or parts such as 'train[:80%]' and 'train[80%:]'"
        )
    absent = [file.filename for part in files for file in part if not Path(file.filename).is_file()]
    if absent:
        raise FileNotFoundError(f"no file {first(absent, 1)}: remove the folder and run {command}")
    source = builder.as_data_source("+".join(splits), deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    try:
        numbers = _labels(tfds, source, info.features[label])
    except Exception as error:  # damaged files make it raise nearly anything
        raise ValueError(f"the records of {folder} are damaged: remove the folder and run {command}") from error
    unlabelled = np.flatnonzero(numbers == -1)
    if len(unlabelled):
        raise ValueError(
            f"{len(unlabelled)} of {len(numbers)} examples of {' and '.join(map(repr, splits))} have no label (-1), "
            "as test splits often do: give other splits"
        )
    classes = tuple(info.features[label].names)
    labels = label_classes(numbers, classes, source=f"the examples of {name}", where=lambda i: f"example {i}")
    return TfdsExamples(TfdsImages(tfds, source, info.features[image]), labels, sum(file.take for file in files[0]))


def prepared_folder(name: str | os.PathLike, data_dir: str | os.PathLike | None = None) -> Path:
    """The folder with the files of a prepared data set: the newest version, where `name` does not say which.

    `name` is "NAME", "NAME/CONFIG", either with ":VERSION", in `data_dir` (default: TFDS_DATA_DIR, else
    ~/tensorflow_datasets), or a folder. Raises FileNotFoundError for a data set that is not there, ValueError for one
    with several configurations.
    """
    for place in (name, data_dir):
        if "://" in str(place):
            raise ValueError(f"{place} is a URL, and data sets are read from a folder: mount it (gcsfuse) or copy it")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    stem, _, version = os.fspath(name).partition(":")
    for folder in (root / stem, Path(stem).expanduser()):
        found = _prepared(folder)
        right = [path for path in found if path.name == version or not version]
        places = sorted({path.parent for path in right})
        if len(places) > 1:
            choices = first([place.relative_to(folder).as_posix() for place in places], 10)
            raise ValueError(f"{name} names {len(places)} data sets: say which, {name}/... with one of {choices}")
        if right:
            return max(right, key=lambda path: [int(n) if n.isdigit() else -1 for n in path.name.split(".")])
        if found:
            versions = first(sorted({path.name for path in found}), 10)
            raise FileNotFoundError(f"no version {version} in {folder}, which has {versions}: give one of them")
    there = sorted({path.relative_to(root).parts[0] for path in _prepared(root)})
    known = f", which has {first(there, 10)}" if there else ""
    command = prepare_command(name, data_dir)
    raise FileNotFoundError(f"no data set {name} in {root}{known}: prepare it with {command}{nearest(stem, there)}")


def prepare_command(name: str | os.PathLike, data_dir: str | os.PathLike | None) -> str:
    """What to type to have a data set prepared (`tfds_prepare`)."""
    where = [] if data_dir is None else ["--data-dir", os.fspath(data_dir)]
    return shlex.join(["python", "-m", "jaxfast.data.tfds_prepare", os.fspath(name), *where])


def _prepared(folder: Path) -> list[Path]:
    """Folders of prepared data sets from `folder` itself down: .../NAME[/CONFIG]/VERSION."""
    found = [path.parent for depth in ("", "*/", "*/*/", "*/*/*/") for path in folder.glob(f"{depth}features.json")]
    return [path for path in found if not path.name.startswith("incomplete")]


def _open(tfds: ModuleType, folder: Path, command: str) -> Any:
    """The builder of a folder, set to read its ArrayRecord files."""
    try:
        builder = tfds.builder_from_directory(folder)
        formats = [form.value for form in builder.info.available_file_formats()]
    except Exception as error:  # damaged files make it raise nearly anything
        what = f"dataset_info.json or features.json of {folder} is damaged"
        raise ValueError(f"{what}: remove the folder and run {command}") from error
    if ARRAY_RECORD not in formats:
        raise ValueError(
            f"{folder} holds {first(formats)} files, which cannot be read in any order: "
            f"write ArrayRecord files beside them with {command}"
        )
    builder.info.set_file_format(ARRAY_RECORD, override=True, override_if_initialized=True)
    return builder


def _is_picture(tfds: ModuleType, feature: Any) -> bool:
    whole = isinstance(feature, tfds.features.Image) and np.dtype(feature.np_dtype) in (np.uint8, np.uint16)
    return whole and len(feature.shape) == 3  # not float maps in the bytes of a PNG, and not animations


def _check_feature(name: Any, features: Any, argument: str, given: str, what: str, fits: Callable) -> None:
    known = [entry for entry, feature in sorted(features.items()) if fits(feature)]
    if given in known:
        return
    kinds = first([f"{entry} ({type(feature).__name__})" for entry, feature in sorted(features.items())], 10)
    if not known:
        raise ValueError(f"{name} has no {what}: its features are {kinds}; use another data set")
    is_not = f"does not hold {what}" if given in features else "does not exist"
    raise ValueError(f"feature {given!r} of {name} {is_not}: give {argument}={known[0]!r}; its features are {kinds}")


def _files(name: Any, info: Any, argument: str, split: str) -> list:
    """What to read of which file; ValueError for a split that is not there or empty."""
    sizes = {known: part.num_examples for known, part in info.splits.items()}
    known = first([f"{split} ({size} examples)" for split, size in sizes.items()], 10)
    try:
        files = info.splits[split].file_instructions
    except (ValueError, KeyError, AttributeError):
        raise ValueError(
            f"{argument}={split!r} is no split of {name}, which has {known}: "
            f"give one of them or a part such as 'train[:80%]'{nearest(split, sizes)}"
        ) from None
    if sum(file.take for file in files) < 1:
        raise ValueError(f"{argument}={split!r} holds no example; {name} has {known}: give a larger part")
    return files


def _overlap(a: Any, b: Any) -> int:
    """How many records two reading instructions have in common."""
    if a.filename != b.filename:
        return 0
    return max(0, min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip))


def _labels(tfds: ModuleType, source: Any, feature: Any, block: int = 1024) -> np.ndarray:
    features = tfds.features.FeaturesDict({"label": feature})
    starts = range(0, len(source), block)
    numbers = [
        features.deserialize_example_np(record)["label"]
        for start in tracked(starts, "reading labels", len(starts) > 8)
        for record in source.__getitems__(range(start, min(start + block, len(source))))
    ]
    return np.array(numbers, np.int64)
