"""From the labels that people have to the targets that a loss takes, with the names kept."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxfast.messages import first, nearest


class Labels(NamedTuple):
    """Targets of task "single_label", int32 (n,), "multi_label", float32 zeros and ones (n, classes), "regression",
    float32 (n, k), "segmentation", `Masks`, or "points", `Points`; `classes` name classes, numbers or points."""

    targets: Any
    classes: tuple[str, ...]
    task: str


Where = Callable[[int], str]
"""Names example i in an error."""


def check_classes(classes: Sequence[Any]) -> tuple[str, ...]:
    """Class names as strings; raises ValueError for a name that appears twice."""
    names = tuple(str(name) for name in classes)
    if isinstance(classes, str) or len(set(names)) < len(names):
        raise ValueError(f"classes={classes!r}: give a list of class names, each once")
    return names


def label_classes(values: Sequence[Any], classes: Sequence[Any] | None, *, source: str, where: Where) -> Labels:
    """One label per example; `classes` are the distinct labels in order unless given.

    With `classes`, whole numbers count from 0 into them; other labels are their names. Raises ValueError for a
    missing label, a label that is not in `classes`, numbers with fractions, and one class only.
    """
    values = np.asarray(values)
    if not len(values):
        raise ValueError(f"{source} hold no images: give at least two")
    missing = np.flatnonzero([is_missing(value) for value in values.tolist()])
    if len(missing):
        raise ValueError(f"the label is missing in {first([where(i) for i in missing])}: fill it in or drop it")
    if values.dtype == object and all(isinstance(value, (bool, int, float, np.number)) for value in values):
        values = np.array(values.tolist())
    if np.issubdtype(values.dtype, np.floating):
        i = int(np.argmax(values != np.round(values)))
        if values[i] != np.round(values[i]):
            raise ValueError(
                f"the label of {where(i)} is {values[i]}: classes are names or whole numbers; "
                "numbers are predicted by from_arrays and from_frame with task='regression'"
            )
        values = values.astype(np.int64)
    if classes is None:
        distinct = np.unique(values.astype(str) if values.dtype == object else values)
        classes = [str(value) for value in distinct]
        values = values.astype(str)
    classes = check_classes(classes)
    if values.dtype.kind in "biu":
        targets = values.astype(np.int64)
        wrong = np.flatnonzero((targets < 0) | (targets >= len(classes)))
        known = f"labels count from 0 to {len(classes) - 1}, for {len(classes)} classes: correct it, or give classes="
    else:
        number = {name: i for i, name in enumerate(classes)}
        targets = np.array([number.get(str(value), -1) for value in values])
        wrong = np.flatnonzero(targets < 0)
        known = f"the classes are {first(classes)}{nearest(values[wrong[0]], classes) if len(wrong) else ''}"
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(f"the label of {where(i)} is {values.tolist()[i]!r}, but {known}")
    if targets.size and (targets == targets[0]).all():
        raise ValueError(f"{source} hold one class only, {classes[targets[0]]!r}: training needs at least two")
    return Labels(targets.astype(np.int32), classes, "single_label")


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is empty: None, NaN, NaT or pandas.NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA has no truth value
        return True


def number_classes(labels: np.ndarray, *, where: Where) -> range:
    """The classes of whole-number labels that come without names: 0 to the largest.

    Raises ValueError for negative labels and for a number that no example has.
    """
    distinct, place = np.unique(labels, return_index=True)
    if distinct[0] < 0:
        raise ValueError(f"the label of {where(int(place[0]))} is {distinct[0]}: labels count from 0")
    gaps = np.setdiff1d(np.arange(len(distinct)), distinct)
    if len(gaps):
        raise ValueError(
            f"labels go up to {distinct[-1]}, but none is {gaps[0]}: count from 0 without gaps, or give classes="
        )
    return range(len(distinct))


def label_rows(rows: np.ndarray, classes: Sequence[Any] | None, *, where: Where) -> Labels:
    """Multi-hot rows (n, classes) of zeros and ones; raises ValueError for other values and shapes."""
    classes = check_classes(range(rows.shape[-1]) if classes is None else classes)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ValueError(
            f"labels of shape {rows.shape}: give whole numbers (n,) or rows of zeros and ones (n, classes)"
        )
    if rows.shape[1] != len(classes):
        raise ValueError(
            f"label rows have {rows.shape[1]} columns, but there are {len(classes)} classes: give one each"
        )
    wrong = np.argwhere((rows != 0) & (rows != 1))
    if len(wrong):
        i, column = wrong[0]
        raise ValueError(
            f"the labels of {where(int(i))} hold {rows[i, column]} in column {column}: a row is made of zeros and ones"
        )
    return Labels(rows.astype(np.float32), classes, "multi_label")


def label_tags(tags: Sequence[Sequence[str]], classes: Sequence[Any] | None, *, where: Where) -> Labels:
    """Any number of class names per example; raises ValueError for a name that is not in `classes`."""
    classes = check_classes(sorted({tag for row in tags for tag in row}) if classes is None else classes)
    number = {name: i for i, name in enumerate(classes)}
    rows = np.zeros((len(tags), len(classes)), np.float32)
    for i, row in enumerate(tags):
        for tag in row:
            if tag not in number:
                raise ValueError(
                    f"the label of {where(i)} is {tag!r}, but the classes are {first(classes)}{nearest(tag, classes)}"
                )
            rows[i, number[tag]] = 1
    if not len(classes):
        raise ValueError("no example has a label: training needs at least one class")
    return Labels(rows, classes, "multi_label")


def split_tags(cells: Sequence[str], delim: str, classes: Sequence[Any] | None, *, source: str) -> list[list[str]]:
    """The labels of each cell, between `delim`, without blanks around them; an empty cell has none.

    Raises ValueError for a delimiter that no cell holds, unless `classes` say what the labels are.
    """
    if not isinstance(delim, str) or not delim:
        raise ValueError(f"label_delim={delim!r}: give what stands between two labels, such as ' '")
    filled = [cell for cell in cells if cell.strip()]
    if filled and classes is None and not any(delim in cell for cell in filled):
        longest = max(filled, key=len)
        raise ValueError(
            f"label_delim={delim!r} stands in none of {source}, such as {longest!r}: give what separates their labels, "
            "leave it out for one label each, or name the labels in classes="
        )
    return [[tag.strip() for tag in cell.split(delim) if tag.strip()] for cell in cells]


def any_labels(labels: Any, classes: Sequence[Any] | None) -> Labels:
    """Labels in the form that they come in: whole numbers from 0 on, names, lists of names, or multi-hot rows."""
    where = lambda i: f"image {i}"
    if isinstance(labels, list) and labels and isinstance(labels[0], (list, tuple, set, frozenset)):
        if any(isinstance(tag, str) for row in labels for tag in row):
            return label_tags(labels, classes, where=where)
    try:
        labels = np.asarray(labels)
    except ValueError:
        raise ValueError("the labels differ in shape: give each image one label, or rows of equal length") from None
    if labels.ndim != 1:
        return label_rows(labels, classes, where=where)
    if classes is None and labels.dtype.kind in "iu" and len(labels):
        classes = number_classes(labels, where=where)
    return label_classes(labels, classes, source="the labels", where=where)
