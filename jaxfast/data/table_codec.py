"""What is learnt of a table's training rows, and how rows become arrays and outputs become answers."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxfast.data import frames
from jaxfast.data.prediction import Prediction, Value
from jaxfast.data.table_columns import Category, Number
from jaxfast.data.table_target import Target
from jaxfast.messages import check_answer, first, no_answers


@dataclass(frozen=True)
class TableCodec:
    """Categories, numbers and target as the training rows have them: all that a model needs beside its weights."""

    kind: ClassVar[str] = "table"

    categories: tuple[Category, ...]
    numbers: tuple[Number, ...]
    target: Target

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a table must have."""
        return tuple(column.name for column in (*self.categories, *self.numbers))

    @property
    def embedded(self) -> tuple[Category, ...]:
        """The columns of the "categories" array: the categorical ones, then `name`_na of the numbers that have one."""
        flags = tuple(Category(f"{number.name}_na", (False, True)) for number in self.numbers if number.flag)
        return self.categories + flags

    def encode_frame(self, table: Any) -> dict[str, np.ndarray]:
        """All rows: "categories" int32 (rows, categorical columns) and "numbers" float32 (rows, continuous columns).

        ValueError for a missing column, one whose type does not fit the training's, and infinite values.
        """
        frame = frames.to_frame(table)
        frames.check_columns(frame, self.columns, "the model was trained with")
        numbers, flags = [], []
        for number in self.numbers:
            values, empty = number.encode(frame[number.name])
            numbers.append(values)
            if number.flag:
                flags.append(empty.astype(np.int32) + 1)
        codes = [category.encode(frame[category.name]) for category in self.categories] + flags
        rows = len(frame)
        return {
            "categories": np.stack(codes, 1) if codes else np.zeros((rows, 0), np.int32),
            "numbers": np.stack(numbers, 1) if numbers else np.zeros((rows, 0), np.float32),
        }

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """One row: a dict of cells, a pandas row, a table of one row, or an example such as `data.valid[i]`."""
        if isinstance(item, Mapping) and set(item) - {"target"} == {"categories", "numbers"}:
            return {name: np.asarray(item[name]) for name in ("categories", "numbers")}
        if hasattr(item, "to_dict") and getattr(item, "ndim", None) == 1:
            item = item.to_dict()
        if isinstance(item, Mapping):
            item = {name: [item[name]] for name in self.columns if name in item}
            if not item:
                raise ValueError(f"a row needs the columns {first(self.columns, 20)}: this one has none of them")
        rows = self.encode_frame(item)
        if len(rows["categories"]) != 1:
            raise ValueError(f"predict takes one row, the table has {len(rows['categories'])}: use predict_frame")
        return {name: values[0] for name, values in rows.items()}

    def decode(self, outputs: np.ndarray) -> Prediction | Value:
        """The answer to one row of activated outputs, (n_out,). Raises `NoAnswer` if it is not finite in the table's
        units."""
        target = self.target
        if target.task == "single_label":
            index = int(outputs.argmax())
            return Prediction(target.classes[index], index, outputs, target.classes)
        if target.task == "multi_label":
            on = np.flatnonzero(outputs > 0.5)
            label = ", ".join(target.classes[i] for i in on) or "(none)"
            return Prediction(label, on, outputs, target.classes)
        values = target.to_units(outputs if target.n_out > 1 else outputs.reshape(()))
        check_answer(values)
        return Value(np.asarray(values) if target.n_out > 1 else float(values))

    def decode_frame(self, outputs: np.ndarray, *, probabilities: bool = False) -> dict[str, np.ndarray]:
        """Columns of answers to activated outputs (rows, n_out).

        "prediction" (a class or a number), or "prediction_NAME" for each of several targets; with `probabilities` also
        "probability_CLASS". Rows whose outputs are not finite get None in all columns, and a RuntimeWarning says how
        many there are.
        """
        target = self.target
        if target.task == "single_label":
            columns = {"prediction": np.array(target.classes, object)[outputs.argmax(-1)]}
        elif target.task == "multi_label":
            columns = {f"prediction_{name}": outputs[:, i] > 0.5 for i, name in enumerate(target.names)}
        elif target.n_out == 1:
            columns = {"prediction": target.to_units(outputs.reshape(-1))}
        else:
            values = target.to_units(outputs)
            columns = {f"prediction_{name}": values[:, i] for i, name in enumerate(target.names)}
        if probabilities and target.classes:
            columns |= {f"probability_{name}": outputs[:, i] for i, name in enumerate(target.classes)}
        numbers = [outputs, *(x[:, None] for x in columns.values() if x.dtype.kind == "f")]
        finite = np.isfinite(np.concatenate(numbers, 1)).all(1)
        if finite.all():
            return columns
        warnings.warn(no_answers(int((~finite).sum()), len(finite)), RuntimeWarning, stacklevel=3)
        return {name: np.where(finite, values, None) for name, values in columns.items()}

    def to_json(self) -> dict:
        """Plain JSON values; `from_json` gives an equal codec."""
        return {"kind": self.kind, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, stored: dict) -> "TableCodec":
        target = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in stored["target"].items()}
        return cls(
            tuple(Category(c["name"], tuple(c["values"])) for c in stored["categories"]),
            tuple(Number(**number) for number in stored["numbers"]),
            Target(**target),
        )


def fit_codec(frame, categorical: Sequence[str], continuous: Sequence[str], target: Target) -> TableCodec:
    """The codec of a narwhals frame that holds the training rows and no others.

    ValueError where a column is in both lists, and where a `_na` column would take the name of another.
    """
    both = sorted(set(categorical) & set(continuous))
    if both:
        raise ValueError(f"column {first([repr(b) for b in both])} is in categorical= and in continuous=: name it once")
    if not categorical and not continuous:
        raise ValueError("there is no column to predict from: name some in categorical= or continuous=")
    codec = TableCodec(
        tuple(Category.fit(frame[name]) for name in categorical),
        tuple(Number.fit(frame[name]) for name in continuous),
        target,
    )
    names = [column.name for column in codec.embedded]
    taken = sorted({name for name in names if names.count(name) > 1})
    if taken:
        raise ValueError(f"column {first(taken)} would be made for empty cells, but there is one: rename it")
    return codec
