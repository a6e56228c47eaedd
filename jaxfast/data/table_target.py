"""What a table's model answers: classes or numbers, and the way there and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxfast.data import frames
from jaxfast.data.table_columns import Category, plain_number
from jaxfast.messages import first, nearest


@dataclass(frozen=True)
class Target:
    """What a table's model answers: `task` "single_label" or "multi_label" with `classes`, or "regression".

    Numbers are trained as (y - mean) / std, or of log(y) with `log`; an answer is in the units of the table again.
    """

    names: tuple[str, ...]
    task: str
    classes: tuple[str, ...] | None = None
    log: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def n_out(self) -> int:
        return len(self.names) if self.classes is None else len(self.classes)

    def to_units(self, outputs, numpy: Any = np):
        """Outputs of a regression, (..., n_out), or (...,) of one target, in the table's units; `numpy` may be jnp."""
        mean, std = (np.float32(v[0] if len(self.names) == 1 else v) for v in (self.mean, self.std))
        values = outputs * std + mean
        return numpy.exp(values) if self.log else values

    def from_units(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `to_units`."""
        mean, std = (np.float64(v[0] if len(self.names) == 1 else v) for v in (self.mean, self.std))
        return ((np.log(values) if self.log else np.asarray(values)) - mean) / std


def fit_target(frame, names: Sequence[str], task: str, log: bool, standardize: bool) -> Target:
    """The target of the training rows in `frame`: classes, or mean and deviation.

    `task` "auto": text, categories, booleans and whole numbers of two values are classes, other numbers are regressed;
    several targets are several numbers, or several yes / no questions. ValueError for a target that is empty, infinite
    or constant, for one that does not fit `task`, and for a logarithm of what is not above zero.
    """
    known = ("auto", "single_label", "multi_label", "regression")
    if task not in known:
        raise ValueError(f"task={task!r} is unknown: give one of {first(known)}{nearest(task, known)}")
    series = [frame[name] for name in names]
    kinds = [frames.kind_of(s) for s in series]
    for s, kind in zip(series, kinds, strict=True):
        if kind in (frames.TIME, frames.OTHER):
            raise ValueError(f"the target {s.name!r} holds {kind} ({s.dtype}): give text, numbers or booleans")
    nw = frames.narwhals()
    yes_no = [
        k == frames.FLAG or (k == frames.NUMBER and set(s.unique().to_list()) <= {0, 1})
        for s, k in zip(series, kinds, strict=True)
    ]
    if task == "auto":
        if len(names) > 1:
            task = "multi_label" if all(yes_no) else "regression"
        else:
            s, k = series[0], kinds[0]
            named = k != frames.NUMBER or s.dtype in (nw.Categorical, nw.Enum)
            task = "single_label" if named or (s.dtype.is_integer() and s.n_unique() == 2) else "regression"
    if (log or standardize) and task != "regression":
        raise ValueError(f"log= and standardize= are for targets that are numbers, {first(names)} is {task}")
    if task == "single_label":
        if len(names) > 1:
            raise ValueError(f"single_label takes one target, got {first(names)}: give task='multi_label', or one name")
        classes = Category.fit(series[0]).values
        if len(classes) < 2:
            raise ValueError(
                f"the target {names[0]!r} is {classes[0]!r} in all training rows: training needs two classes"
            )
        return Target(tuple(names), task, tuple(str(value) for value in classes))
    if task == "multi_label":
        if not all(yes_no):
            raise ValueError(
                f"multi_label takes columns of booleans or of 0 and 1: {names[yes_no.index(False)]!r} is not"
            )
        return Target(tuple(names), task, tuple(names))
    means, stds = [], []
    for s in series:
        values = frames.numbers_of(s)
        if log and not (values > 0).all():
            raise ValueError(
                f"log=True needs targets above zero, {s.name!r} has {values.min():g}: drop those rows or add to it"
            )
        values = np.log(values) if log else values
        means.append(float(values.mean()) if standardize else 0.0)
        stds.append((float(values.std()) or 1.0) if standardize else 1.0)
    return Target(tuple(names), task, None, log, tuple(means), tuple(stds))


def check_target(frame, names: Sequence[str]) -> None:
    """ValueError where a target of any row is empty or infinite: such a row can neither train nor be scored."""
    for name in names:
        values = frame[name].to_list()
        empty = [i for i, value in enumerate(values) if frames.is_empty(value)]
        if empty:
            raise ValueError(
                f"the target {name!r} is empty in {len(empty)} rows, such as row {empty[0]}: drop them or fill them in"
            )
        if frames.kind_of(frame[name]) == frames.NUMBER:
            infinite = np.flatnonzero(np.isinf(frames.numbers_of(frame[name])))
            if len(infinite):
                raise ValueError(
                    f"the target {name!r} is infinite in {len(infinite)} rows, such as row {infinite[0]}: drop them"
                )


def encode_target(frame, target: Target) -> np.ndarray:
    """Targets as a loss takes them: int32 (rows,), float32 zeros and ones (rows, k), float32 (rows,) or (rows, k)."""
    if target.task == "single_label":
        column = frame[target.names[0]]
        number = {name: i for i, name in enumerate(target.classes)}
        codes = np.array([number.get(_class_name(value), -1) for value in column.to_list()], np.int32)
        unseen = np.flatnonzero(codes < 0)
        if len(unseen):
            raise ValueError(
                f"row {unseen[0]} of the validation rows is of class {column.to_list()[unseen[0]]!r}, which no "
                "training row has: move some, or drop them"
            )
        return codes
    values = np.stack([frames.numbers_of(frame[name]) for name in target.names], -1)
    if target.task == "multi_label":
        return values.astype(np.float32)
    values = values[:, 0] if len(target.names) == 1 else values
    if target.log and not (values > 0).all():
        raise ValueError(f"log=True needs targets above zero, a validation row has {values.min():g}: drop those rows")
    return target.from_units(values).astype(np.float32)


def _class_name(value) -> str:
    if isinstance(value, str):
        return value
    return str(bool(value)) if isinstance(value, (bool, np.bool_)) else str(plain_number(value))
