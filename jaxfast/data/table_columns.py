"""What is learnt of one column of a table: its categories, or its median, mean and deviation."""

from dataclasses import dataclass
from itertools import repeat

import numpy as np

from jaxfast.data import frames


def plain_number(value) -> int | float:
    """A Python number; a float that is whole becomes an int, so that its name does not depend on empty cells.

    >>> [plain_number(np.float64(3)), plain_number(2.5)]
    [3, 2.5]
    """
    value = int(value) if isinstance(value, (int, np.integer)) else float(value)
    return int(value) if float(value).is_integer() else value


@dataclass(frozen=True)
class Category:
    """A categorical column: `values[i]` has code i + 1, an unknown or empty cell code 0 (fastai's Categorify)."""

    name: str
    values: tuple[str | int | float | bool, ...]

    @classmethod
    def fit(cls, series) -> "Category":
        """The distinct values in order; ValueError for an empty column and for dates."""
        kind = frames.kind_of(series)
        values = {value for value in series.unique().to_list() if not frames.is_empty(value)}
        if not values:
            raise ValueError(f"column {series.name!r} is empty in all {len(series)} training rows: drop it")
        if kind in (frames.TIME, frames.OTHER):
            raise ValueError(
                f"column {series.name!r} holds {kind}, such as {next(iter(values))!r}: categories are text, numbers "
                "or booleans; convert it (dates: add_datepart)"
            )
        if kind == frames.NUMBER and not np.isfinite(np.array(list(values), float)).all():
            raise ValueError(f"the categorical column {series.name!r} holds infinite numbers: replace them")
        plain = {frames.TEXT: str, frames.FLAG: bool, frames.NUMBER: plain_number}[kind]
        return cls(series.name, tuple(sorted(plain(value) for value in values)))

    def encode(self, series) -> np.ndarray:
        """int32 codes; ValueError where text comes for numbers or numbers for text."""
        values = series.to_list()
        # Equal numbers hash alike in Python, so 3, 3.0 and True find the category whichever type a column has.
        codes = np.fromiter(map(self._codes.get, values, repeat(0)), np.int32, len(values))
        if not codes.all():
            was_text = isinstance(self.values[0], str)
            for value in (values[i] for i in np.flatnonzero(codes == 0)):
                if not frames.is_empty(value) and isinstance(value, str) != was_text:
                    raise ValueError(
                        f"column {self.name!r} held {'text' if was_text else 'numbers'} in training, such as "
                        f"{self.values[0]!r}, and now holds {value!r} ({series.dtype}): convert it"
                    )
        return codes

    @property
    def _codes(self) -> dict:
        return {value: code for code, value in enumerate(self.values, 1)}


@dataclass(frozen=True)
class Number:
    """A continuous column: empty cells become the median, then the mean and the deviation are taken out.

    `flag`: a column `name`_na says which cells were empty, since training rows had some (fastai's FillMissing).
    """

    name: str
    median: float
    mean: float
    std: float
    flag: bool

    @classmethod
    def fit(cls, series) -> "Number":
        """ValueError for a column that is empty, not of numbers, or not finite."""
        values = cls._checked(series)
        empty = np.isnan(values)
        if empty.all():
            raise ValueError(f"column {series.name!r} is empty in all {len(values)} training rows: drop it")
        median = float(np.median(values[~empty]))
        filled = np.where(empty, median, values)
        # A constant column tells nothing; it stays 0 instead of a division by zero.
        return cls(series.name, median, float(filled.mean()), float(filled.std()) or 1.0, bool(empty.any()))

    def encode(self, series) -> tuple[np.ndarray, np.ndarray]:
        """(float32 normalised values, which cells were empty)."""
        values = self._checked(series)
        empty = np.isnan(values)
        return ((np.where(empty, self.median, values) - self.mean) / self.std).astype(np.float32), empty

    @staticmethod
    def _checked(series) -> np.ndarray:
        values = frames.numbers_of(series)
        infinite = np.flatnonzero(np.isinf(values))
        if len(infinite):
            raise ValueError(
                f"column {series.name!r} is infinite in {len(infinite)} rows, the first is row {infinite[0]}: "
                "replace the values, or leave the cells empty"
            )
        return values
