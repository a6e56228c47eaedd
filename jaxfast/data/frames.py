"""Tables of any library, through narwhals: reading, columns as arrays, and what memory they need."""

import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from jaxfast._extras import need
from jaxfast.messages import first, kind, nearest

NUMBER, TEXT, FLAG, TIME, OTHER = "numbers", "text", "booleans", "dates", "objects"


def narwhals():
    return need("narwhals", extra="tabular", purpose="tables")


def to_frame(table: Any):
    """A narwhals DataFrame over a pandas, polars, pyarrow, modin, cudf ... table, or a dict of columns.

    A lazy frame is collected; other objects come over by Arrow's stream (`__arrow_c_stream__`) or the dataframe
    interchange protocol (`__dataframe__`), which take pyarrow. ValueError for anything else and for column names
    that are not text or appear twice.
    """
    nw = narwhals()
    if isinstance(table, Mapping):
        table = nw.from_dict(dict(table), backend=_backend())
    try:
        frame = nw.from_native(table, pass_through=True)
    except nw.exceptions.DuplicateError as error:
        raise ValueError(
            f"more than one column has the same name, rename them: {' '.join(str(error).split())}"
        ) from None
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    if not isinstance(frame, nw.DataFrame):
        if hasattr(table, "__arrow_c_stream__"):
            frame = nw.from_arrow(table, backend="pyarrow")
        elif hasattr(table, "__dataframe__"):
            interchange = need("pyarrow.interchange", extra="tabular", purpose="tables of other libraries")
            frame = nw.from_native(interchange.from_dataframe(table), eager_only=True)
        else:
            raise ValueError(
                f"{kind(table)} is not a table: give a data frame (pandas, polars, pyarrow ...) or a dict of columns"
            )
    names = list(frame.columns)
    strange = [name for name in names if not isinstance(name, str)]
    if strange:
        raise ValueError(
            f"the column names {first(strange)} are not text: rename them, df.columns = map(str, df.columns)"
        )
    return frame


def read_frame(path: str | os.PathLike):
    """The narwhals DataFrame of a CSV file (also .csv.gz) or a parquet file, read by pandas, polars or pyarrow.

    FileNotFoundError where there is no such file, ValueError for another ending.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there is no file {file}")
    name = file.name.lower()
    if name.endswith((".parquet", ".pq")):
        return narwhals().read_parquet(str(file), backend=_backend())
    if name.endswith((".csv", ".csv.gz")):
        return narwhals().read_csv(str(file), backend=_backend())
    raise ValueError(f"{file} is neither .csv, .csv.gz nor .parquet: read it yourself and give the frame to from_frame")


def _backend() -> str:
    from importlib.util import find_spec

    for name in ("pandas", "polars", "pyarrow"):
        if find_spec(name):
            return name
    raise ImportError("tables need pandas, polars or pyarrow: pip install 'jaxfast[tabular]'")


def check_columns(frame, names, what: str) -> None:
    """ValueError naming the columns of `names` that `frame` lacks, with the nearest name that it has."""
    known = list(frame.columns)
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f"{what} {first([repr(name) for name in missing])} not in the table, whose columns are {first(known, 20)}"
            f"{nearest(missing[0], known)}"
        )


def kind_of(series) -> str:
    """What a narwhals Series holds: NUMBER, TEXT, FLAG, TIME, or OTHER for a mixture, other objects or nothing."""
    dtype, nw = series.dtype, narwhals()
    if dtype.is_numeric():
        return NUMBER
    if dtype == nw.Boolean:
        return FLAG
    if dtype.is_temporal():
        return TIME
    kinds = {_kind_of_value(value) for value in series.unique().to_list() if not is_empty(value)}
    return kinds.pop() if len(kinds) == 1 else OTHER


def _kind_of_value(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return FLAG
    if isinstance(value, (int, float, np.number, Decimal)):
        return NUMBER
    if isinstance(value, str):
        return TEXT
    return TIME if hasattr(value, "isoformat") else OTHER


def is_empty(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, NaT or pandas.NA."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas.NA has no truth value
        return True


def numbers_of(series) -> np.ndarray:
    """float64 values of a Series of numbers or booleans, NaN where empty; ValueError where a value is no number."""
    if series.dtype.is_numeric() and not series.is_null().any():
        return series.to_numpy().astype(np.float64)
    values = series.to_list()
    strange = [v for v in values if not is_empty(v) and _kind_of_value(v) not in (NUMBER, FLAG)]
    if strange:
        raise ValueError(
            f"column {series.name!r} holds {kind_of(series)}, such as {strange[0]!r}, where numbers are expected: "
            "convert it, or name it in categorical="
        )
    return np.array([np.nan if is_empty(value) else float(value) for value in values], np.float64)


def cont_cat_split(df: Any, *, max_card: int = 20, exclude=()) -> tuple[list[str], list[str]]:
    """(continuous, categorical) column names by dtype and cardinality (fastai's cont_cat_split).

    Floats, and whole numbers with more than `max_card` distinct values, are continuous; text, categories, booleans and
    other whole numbers are categorical. `exclude` are left out. ValueError for dates, which `add_datepart` takes
    apart, and for columns of other things.
    """
    frame, nw = to_frame(df), narwhals()
    continuous, categorical = [], []
    for name in frame.columns:
        if name in exclude:
            continue
        series = frame[name]
        if series.is_null().all():
            raise ValueError(f"column {name!r} is empty in all {len(series)} rows: drop it")
        kind = kind_of(series)
        if kind == TIME:
            raise ValueError(f"column {name!r} holds dates: take it apart with add_datepart(df, {name!r}), or drop it")
        if kind == OTHER:
            raise ValueError(f"column {name!r} mixes kinds of values ({series.dtype}): convert it to one, or drop it")
        is_category = series.dtype in (nw.Categorical, nw.Enum)
        few = kind == NUMBER and not series.dtype.is_float() and not is_category and series.n_unique() <= max_card
        (categorical if kind != NUMBER or is_category or few else continuous).append(name)
    return continuous, categorical


def shrink(df: Any):
    """The table in its own library with every column in the smallest type that holds it exactly (fastai's df_shrink).

    Whole numbers become the smallest (un)signed integers; float64 becomes float32 where no value changes; text with
    fewer distinct values than half the rows becomes categories.
    """
    frame, nw = to_frame(df), narwhals()
    whole = (nw.Int8, nw.UInt8, nw.Int16, nw.UInt16, nw.Int32, nw.UInt32)
    columns = []
    for name in frame.columns:
        series = frame[name]
        if series.dtype.is_integer() and len(series) and not series.is_null().all():
            smallest = next((dtype for dtype in whole if _holds(dtype, series.min(), series.max())), None)
            series = series if smallest is None else series.cast(smallest)
        elif series.dtype == nw.Float64:
            values = series.to_numpy()
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float32)
            if np.array_equal(narrow.astype(np.float64), values, equal_nan=True):
                series = series.cast(nw.Float32)
        elif series.dtype == nw.String and kind_of(series) == TEXT and series.n_unique() * 2 <= len(series):
            series = series.cast(nw.Categorical)
        columns.append(series)
    return frame.with_columns(*columns).to_native()


def _holds(dtype, low: int, high: int) -> bool:
    limits = np.iinfo(dtype.__name__.lower())
    return limits.min <= low and high <= limits.max
