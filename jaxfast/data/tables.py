"""The object that a learner of tables reads: training and validation rows as arrays, and how they came about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxfast.data import frames
from jaxfast.data.prediction import Prediction, Value
from jaxfast.data.split import split_indices
from jaxfast.data.table_codec import TableCodec, fit_codec
from jaxfast.data.table_target import check_target, encode_target, fit_target
from jaxfast.messages import first, nearest


@dataclass(frozen=True, eq=False)
class TableDataset:
    """Rows as arrays: categories int32 (rows, columns), numbers float32 (rows, columns), target (rows,) or (rows, k).

    `index` are the rows' places in the table that they come from.
    """

    categories: np.ndarray
    numbers: np.ndarray
    target: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {"categories": self.categories[i], "numbers": self.numbers[i], "target": self.target[i]}

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at `indices`, stacked."""
        return self[np.asarray(indices, int)]

    @property
    def nbytes(self) -> int:
        return self.categories.nbytes + self.numbers.nbytes + self.target.nbytes

    def __repr__(self) -> str:
        categorical, continuous = self.categories.shape[1], self.numbers.shape[1]
        return f"TableDataset: {len(self)} rows, {categorical} categorical and {continuous} continuous columns"


@dataclass(frozen=True, eq=False, repr=False)
class TableData:
    """Training and validation rows with all that a learner needs to know of them; `frame` is the whole table."""

    train: TableDataset
    valid: TableDataset
    codec: TableCodec
    batch_size: int
    seed: int
    frame: Any
    inputs: tuple[str, ...] = ("categories", "numbers")
    augment: None = None
    prepare: None = None

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.codec.target.classes

    @property
    def task(self) -> str:
        """ "single_label", "multi_label" or "regression"."""
        return self.codec.target.task

    @property
    def n_out(self) -> int:
        return self.codec.target.n_out

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """`TableCodec.encode` of one row."""
        return self.codec.encode(item)

    def decode(self, outputs: np.ndarray) -> Prediction | Value:
        """`TableCodec.decode` of one row's outputs."""
        return self.codec.decode(outputs)

    def show_batch(self, n: int = 9, *, seed: int = 0):
        """`n` training rows drawn with `seed`, as a table of the library that the data came in."""
        rows = self.train.index[np.random.default_rng(seed).permutation(len(self.train))[:n]]
        return self.frame[rows][[*self.codec.columns, *self.codec.target.names]].to_native()

    def show_results(self, examples: Sequence[dict], predictions: Sequence[Prediction | Value]):
        """Targets beside predictions, as a table."""
        target = self.codec.target
        truths = [self._truth(example["target"]) for example in examples]
        said = [p.label if isinstance(p, Prediction) else p.value for p in predictions]
        columns = {"target": truths, "prediction": said}
        if target.task == "regression" and target.n_out > 1:
            columns = {
                f"{kind}_{name}": [values[i] for values in rows]
                for i, name in enumerate(target.names)
                for kind, rows in (("target", truths), ("prediction", said))
            }
        return frames.narwhals().from_dict(columns, backend=self.frame.implementation).to_native()

    def _truth(self, target: np.ndarray):
        if self.task == "single_label":
            return self.classes[int(target)]
        if self.task == "multi_label":
            return ", ".join(name for name, on in zip(self.classes, target, strict=True) if on) or "(none)"
        return self.codec.target.to_units(target)

    def __repr__(self) -> str:
        target, codec = self.codec.target, self.codec
        what = (
            target.task
            if target.classes is None
            else f"{target.task}, {len(target.classes)} classes ({first(target.classes)})"
        )
        names = lambda columns: f" ({first([column.name for column in columns], 8)})" if columns else ""
        return (
            f"TableData: {len(self.train)} training and {len(self.valid)} validation rows, "
            f"target {first(target.names)}: {what}\n"
            f"  {len(codec.categories)} categorical columns{names(codec.categories)}\n"
            f"  {len(codec.numbers)} continuous columns{names(codec.numbers)}, batches of {self.batch_size}"
        )


def table_data(
    table: Any,
    *,
    target: str | Sequence[str],
    categorical: Sequence[str] | None,
    continuous: Sequence[str] | None,
    valid: Any,
    seed: int,
    batch_size: int,
    max_card: int,
    task: str,
    log: bool,
    standardize: bool,
) -> TableData:
    """Check, split, learn from the training rows, turn all rows into arrays; arguments as in `tabular.from_frame`."""
    frame = frames.to_frame(table)
    if not len(frame):
        raise ValueError("the table has no rows: give at least two")
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give a whole number from 1 on")
    for what, names in (("categorical", categorical), ("continuous", continuous)):
        if isinstance(names, str):
            raise ValueError(f"{what}={names!r}: give a list of columns, {what}=[{names!r}]")
    targets = [target] if isinstance(target, str) else list(target or ())
    if not targets:
        raise ValueError("target= names no column: give the one to predict")
    frames.check_columns(frame, targets, "target=")
    mask_column = ()
    if isinstance(valid, str):
        if valid not in frame.columns:
            raise ValueError(
                f"valid={valid!r}: give a fraction, an index array, or the name of a column of booleans"
                f"{nearest(valid, frame.columns)}"
            )
        mask_column, mask = (valid,), frame[valid]
        if frames.kind_of(mask) != frames.FLAG or mask.is_null().any():
            raise ValueError(f"valid={valid!r} must be a column of booleans without empty cells, it holds {mask.dtype}")
        valid = mask.to_numpy().astype(bool)
    check_target(frame, targets)

    # Which task it is decides how to split, so it is read off all rows; what is fitted sees training rows only.
    one_class_each = len(targets) == 1 and fit_target(frame, targets, task, log, standardize).task == "single_label"
    labels = np.unique(np.array(frame[targets[0]].to_list(), str), return_inverse=True)[1] if one_class_each else None
    train, held_out = split_indices(len(frame), valid, seed=seed, labels=labels)
    if batch_size > len(train):
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(train)} training rows: give batch_size={len(train)} or less"
        )
    training = frame[train]
    if categorical is None or continuous is None:
        given = [*(categorical or ()), *(continuous or ())]
        left = training.select([name for name in frame.columns if name not in {*given, *targets, *mask_column}])
        found = frames.cont_cat_split(left, max_card=max_card) if left.columns else ([], [])
        # With one list given the other one takes what is of its kind and not named.
        continuous = found[0] if continuous is None else list(continuous)
        categorical = found[1] if categorical is None else list(categorical)
    for what, names in (("categorical=", categorical), ("continuous=", continuous)):
        frames.check_columns(frame, names, what)
        inside = [name for name in names if name in targets]
        if inside:
            raise ValueError(f"{what} holds the target {inside[0]!r}: a model must not see what it predicts")

    answer = fit_target(training, targets, "single_label" if one_class_each else task, log, standardize)
    codec = fit_codec(training, list(categorical), list(continuous), answer)
    parts = []
    for rows, part in ((train, training), (held_out, frame[held_out])):
        arrays = codec.encode_frame(part)
        parts.append(TableDataset(arrays["categories"], arrays["numbers"], encode_target(part, answer), rows))
    return TableData(*parts, codec=codec, batch_size=int(batch_size), seed=seed, frame=frame)
