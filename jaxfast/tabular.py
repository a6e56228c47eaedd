"""Tables: from a data frame, CSV or parquet to a trained network, and its predictions as columns."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxfast import metrics as metrics_
from jaxfast.data import frames
from jaxfast.data.dates import add_datepart, add_elapsed
from jaxfast.data.frames import cont_cat_split, shrink
from jaxfast.data.table_codec import TableCodec
from jaxfast.data.table_target import Target
from jaxfast.data.tables import TableData, table_data
from jaxfast.interpret.embeddings import Embeddings
from jaxfast.learner import Learner
from jaxfast.losses import Loss, binary_cross_entropy, cross_entropy, mse
from jaxfast.messages import check_type, first, nearest
from jaxfast.models.tabular import TabularNet, emb_sz

__all__ = [
    "Embeddings",
    "TableCodec",
    "TableData",
    "TabularLearner",
    "add_datepart",
    "add_elapsed",
    "cont_cat_split",
    "from_file",
    "from_frame",
    "learner",
    "shrink",
]


def from_frame(
    df: Any,
    *,
    target: str | Sequence[str],
    categorical: Sequence[str] | None = None,
    continuous: Sequence[str] | None = None,
    valid: float | str | Sequence[Any] | np.ndarray = 0.2,
    batch_size: int = 64,
    seed: int = 42,
    max_card: int = 20,
    task: str = "auto",
    log: bool = False,
    standardize: bool = False,
) -> TableData:
    """Rows of a pandas data frame, or of anything that narwhals can read (polars, pyarrow, modin, a dict ...).

    `categorical`, `continuous`: column names; one that is left out takes what remains of its kind (`cont_cat_split`
    with `max_card`). Empty categories and ones that training rows do not have become code 0; empty numbers become the
    median, with a column `NAME_na` beside them where training rows had any; numbers are normalised. All of it is
    learnt from the training rows alone. `valid`: a fraction (of each class alike), row numbers, booleans, or the name
    of a column of booleans. `task`: "single_label", "multi_label" (several targets of 0 and 1), "regression", or
    "auto": text, categories, booleans and whole numbers of two values are classes, other numbers are regressed;
    several targets are one output each. `log`: train on the target's logarithm; `standardize`: on its distance from
    the mean in deviations; predictions and metrics are in the table's units either way. ValueError for an empty
    table, an empty target, infinite numbers, and columns that are missing, empty, dates or mixed.
    """
    return table_data(
        df, target=target, categorical=categorical, continuous=continuous, valid=valid, batch_size=batch_size,
        seed=seed, max_card=max_card, task=task, log=log, standardize=standardize,
    )  # fmt: skip


def from_file(path: str | os.PathLike, **options: Any) -> TableData:
    """The rows of a .csv, .csv.gz or .parquet file; `options` as in `from_frame`. FileNotFoundError without a file."""
    return from_frame(frames.read_frame(path), **options)


def learner(
    data: TableData,
    *,
    layers: Sequence[int] = (200, 100),
    ps: float | Sequence[float] = 0.0,
    embed_p: float = 0.0,
    emb_szs: dict[str, int] | None = None,
    y_range: tuple[float, float] | None = None,
    metrics: Sequence[str | Callable] | None = None,
    loss: Loss | None = None,
    **options: Any,
) -> "TabularLearner":
    """A `TabularNet` for `data`: dense `layers`, dropouts `ps` after them and `embed_p` after the embeddings.

    `emb_szs`: widths of embeddings by column (default: `emb_sz`). `y_range`: the lowest and the highest number that a
    regression can answer, in the table's units (above zero with `log`). By default the loss is cross entropy, binary
    cross entropy or mean squared error, and the metric accuracy, accuracy_multi, rmse, or rmspe for a logarithm; mse,
    rmse, mae and rmspe are in the table's units. `options` are `Learner`'s. ValueError for what does not fit the data.
    """
    check_type("data", data, TableData, "tabular.from_frame or tabular.from_file")
    if not isinstance(layers, Sequence) or not all(isinstance(width, int) and width > 0 for width in layers):
        raise ValueError(f"layers={layers!r}: give the widths of the layers, such as (200, 100)")
    layers, target = tuple(layers), data.codec.target
    ps = tuple(ps) if isinstance(ps, Sequence) else (ps,) * len(layers)
    if len(ps) != len(layers):
        raise ValueError(f"ps has {len(ps)} dropouts for {len(layers)} layers: give one each, or one number")
    wrong = [p for p in (*ps, embed_p) if not 0 <= p < 1]
    if wrong:
        raise ValueError(f"a dropout of {wrong[0]}: give a rate from 0 to below 1")
    if y_range is not None:
        y_range = _scaled_range(y_range, target)
    module = TabularNet(_sizes(data.codec, emb_szs or {}), data.n_out, layers, ps, embed_p, y_range)
    kind = "log" if target.log else target.task
    default_loss = {"single_label": cross_entropy, "multi_label": binary_cross_entropy}.get(target.task, mse)
    default_metric = {"single_label": "accuracy", "multi_label": "accuracy_multi", "log": "rmspe"}.get(kind, "rmse")
    metrics = (default_metric,) if metrics is None else (metrics,) if isinstance(metrics, str) else metrics
    if target.task == "regression":
        metrics = [_in_units(metric, target) for metric in metrics]
    return TabularLearner(data, module, loss=loss or default_loss, metrics=metrics, **options)


class TabularLearner(Learner):
    """A `Learner` of tables: predicts whole tables and shows what it has learnt of categories."""

    def predict_frame(self, df: Any, *, probabilities: bool = False):
        """`df`, in its own library, with a column "prediction" (a class or a number; "prediction_TARGET" for several).

        With `probabilities` also "probability_CLASS". The columns and errors of `TableCodec.encode_frame`; a column
        that is there already is replaced.
        """
        frame = frames.to_frame(df)
        columns = self.data.codec.decode_frame(self._outputs(frame), probabilities=probabilities)
        new_series = frames.narwhals().new_series
        made = [
            new_series(name, list(v) if v.dtype == object else v, backend=frame.implementation)
            for name, v in columns.items()
        ]
        return frame.with_columns(*made).to_native()

    def embeddings(self, column: str) -> Embeddings:
        """The vectors of a categorical column's values; "#na#" is what unknown and empty cells get."""
        names = [category.name for category in self.data.codec.embedded]
        if column not in names:
            raise ValueError(f"no embedding of {column!r}: the columns are {first(names, 20)}{nearest(column, names)}")
        i = names.index(column)
        return Embeddings(column, ("#na#", *self.data.codec.embedded[i].values), self._vectors(i))

    def featurize(self, df: Any):
        """Numbers for another model, such as a random forest: the normalised continuous columns and every embedding's.

        A table of the library of `df`, with columns NAME for continuous and NAME_0, NAME_1 ... for categorical ones.
        """
        frame, codec = frames.to_frame(df), self.data.codec
        arrays = codec.encode_frame(frame)
        columns = {number.name: arrays["numbers"][:, i] for i, number in enumerate(codec.numbers)}
        for i, category in enumerate(codec.embedded):
            vectors = self._vectors(i)[arrays["categories"][:, i]]
            columns |= {f"{category.name}_{j}": vectors[:, j] for j in range(vectors.shape[1])}
        return frames.narwhals().from_dict(columns, backend=frame.implementation).to_native()

    def _vectors(self, i: int) -> np.ndarray:
        return np.asarray(self.module.vectors(self.state.params, i))

    def _outputs(self, frame, rows: int = 8192) -> np.ndarray:
        """Activated outputs of all rows, (rows, n_out), in blocks of a few fixed sizes so that little compiles."""
        arrays = self.data.codec.encode_frame(frame)
        n = len(frame)
        if not n:
            raise ValueError("the table has no rows: there is nothing to predict")
        block = min(rows, 1 << (n - 1).bit_length())
        parts = []
        for start in range(0, n, block):
            batch = {name: values[start : start + block] for name, values in arrays.items()}
            short = block - len(batch["numbers"])
            batch = {name: np.pad(values, ((0, short), (0, 0))) for name, values in batch.items()}
            parts.append(np.asarray(self.evaluator.predict(self.state.variables, batch))[: block - short])
        return np.concatenate(parts)


def _sizes(codec: TableCodec, emb_szs: dict[str, int]) -> tuple[tuple[int, int], ...]:
    names = [category.name for category in codec.embedded]
    for name, width in emb_szs.items():
        if name not in names:
            raise ValueError(
                f"emb_szs names {name!r}: the categorical columns are {first(names, 20)}{nearest(name, names)}"
            )
        if width < 1:
            raise ValueError(f"emb_szs[{name!r}] is {width}: give a width from 1 on")
    counts = [len(category.values) + 1 for category in codec.embedded]
    return tuple((n, emb_szs.get(name, emb_sz(n))) for name, n in zip(names, counts, strict=True))


def _scaled_range(y_range: tuple[float, float], target: Target) -> tuple[float, float]:
    if target.task != "regression":
        raise ValueError(f"y_range bounds numbers, the target {first(target.names)} is {target.task}: leave it out")
    low, high = y_range if isinstance(y_range, Sequence) and len(y_range) == 2 else (0, 0)
    if not low < high:
        raise ValueError(f"y_range={y_range}: give (lowest, highest)")
    if target.log and low <= 0:
        raise ValueError(f"y_range={y_range} with a logarithm: the lowest number must be above zero")
    if len(target.names) > 1:
        raise ValueError("y_range bounds one target: leave it out for several")
    return tuple(float(v) for v in target.from_units(np.array(y_range, float)))


def _rmspe(outputs: jax.Array, target: jax.Array) -> jax.Array:
    return jax.numpy.square((outputs - target) / target)


def _in_units(metric, target: Target):
    """A metric that is applied to outputs and targets in the table's units."""
    if metric == "rmspe":
        metric = metrics_.mean_of("rmspe", _rmspe, np.sqrt)
    (metric,) = metrics_.resolve([metric])

    def update(outputs, truth, mask):
        units = lambda values: target.to_units(values.reshape(truth.shape), numpy=jax.numpy)
        return metric.update(units(outputs), units(truth), mask)

    return metrics_.Metric(metric.name, update, metric.compute)
