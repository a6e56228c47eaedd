"""Columns made of dates: their parts, and the days since and until events."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfast.data import frames


def add_datepart(df: Any, column: str, *, prefix: str | None = None, drop: bool = True, time: bool = False):
    """The table with the parts of the dates in `column`, in its own library (fastai's add_datepart).

    Year, Month, Week (ISO), Day, Dayofweek (Monday 0), Dayofyear, whether the day is the first or the last of its
    month, quarter or year, and Elapsed (seconds since 1970); with `time` also Hour, Minute, Second. Names start with
    `prefix` (default: the column's name without "date" at its end). Parts of an empty cell are empty. `drop` leaves the
    column itself out. Text is read as ISO dates. ValueError for a column that is missing or is no date.
    """
    frame, nw = frames.to_frame(df), frames.narwhals()
    frames.check_columns(frame, [column], "the date column")
    moments = _moments(frame, column)
    prefix = re.sub("[Dd]ate$", "", column) if prefix is None else prefix
    empty = np.isnat(moments)
    parts = _parts(np.where(empty, np.datetime64(0, "s"), moments), time)
    columns = []
    for name, values in parts.items():
        values = np.where(empty, np.nan, values) if empty.any() else values
        columns.append(nw.new_series(prefix + name, values, backend=frame.implementation))
    frame = frame.drop(column) if drop else frame
    return frame.with_columns(*columns).to_native()


def add_elapsed(df: Any, columns: str | Sequence[str], date: str, *, by: str | Sequence[str] = ()):
    """The table with the days since the last and until the next row of the same `by` where each of `columns` is true.

    New columns `after_NAME` (0 or more) and `before_NAME` (0 or less, as in fastai's add_elapsed_times); both are 0 on
    the day itself, and empty where there is no such row. The rows keep their order. ValueError for missing columns,
    for events that are neither booleans nor 0 and 1, and for rows without a date.
    """
    frame, nw = frames.to_frame(df), frames.narwhals()
    columns = [columns] if isinstance(columns, str) else list(columns)
    by = [by] if isinstance(by, str) else list(by)
    frames.check_columns(frame, [*columns, date, *by], "add_elapsed:")
    days = _moments(frame, date).astype("datetime64[D]")
    if np.isnat(days).any():
        raise ValueError(f"column {date!r} is empty in row {int(np.isnat(days).argmax())}: drop the row or fill it in")
    days = days.astype(np.int64)
    group = np.zeros(len(frame), np.int64)
    for name in by:
        codes = np.unique(np.array(frame[name].to_list(), str), return_inverse=True)[1]
        group = np.unique(group * (codes.max(initial=0) + 1) + codes, return_inverse=True)[1]
    order = np.lexsort((days, group))
    made = []
    for name in columns:
        events = frames.numbers_of(frame[name])
        if not np.isin(events, (0, 1)).all():
            raise ValueError(f"column {name!r} must tell where the event is, by booleans or by 0 and 1")
        since = _since(days[order], group[order], events[order] == 1)
        until = -_since(-days[order][::-1], group[order][::-1], events[order][::-1] == 1)[::-1]
        for prefix, values in (("after_", since), ("before_", until)):
            column = np.empty(len(frame))
            column[order] = values
            made.append(nw.new_series(prefix + name, column, backend=frame.implementation))
    return frame.with_columns(*made).to_native()


def _since(days: np.ndarray, group: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Days from the latest event of the same group to each row, rows in order; NaN before the first."""
    rows = np.arange(len(days))
    latest = np.maximum.accumulate(np.where(event, rows, -1))
    known = (latest >= 0) & (group[latest] == group)
    elapsed = np.where(known, days - days[latest], np.nan)
    # Rows of one day are in no order of their own: an event on that day counts for all of them.
    start = np.r_[True, (days[1:] != days[:-1]) | (group[1:] != group[:-1])] if len(days) else np.zeros(0, bool)
    same_day = np.cumsum(start) - 1
    on_day = np.zeros(same_day.max(initial=-1) + 1, bool)
    np.logical_or.at(on_day, same_day, event)
    return np.where(on_day[same_day], 0.0, elapsed)


def _parts(moments: np.ndarray, time: bool) -> dict[str, np.ndarray]:
    """The parts of datetime64[s] values without empty ones."""
    day, month, year = (moments.astype(f"datetime64[{unit}]") for unit in "DMY")
    number, first = month.astype(int) % 12, (day - month.astype("datetime64[D]")).astype(int) + 1
    last_of_month = (month + 1).astype("datetime64[D]") - 1 == day
    weekday = (day.astype(int) + 3) % 7
    # The ISO week is that of its Thursday, which lies in the week's year.
    thursday = day - weekday + 3
    week = (thursday - thursday.astype("datetime64[Y]").astype("datetime64[D]")).astype(int) // 7 + 1
    parts = {
        "Year": year.astype(int) + 1970,
        "Month": number + 1,
        "Week": week,
        "Day": first,
        "Dayofweek": weekday,
        "Dayofyear": (day - year.astype("datetime64[D]")).astype(int) + 1,
        "Is_month_end": last_of_month,
        "Is_month_start": first == 1,
        "Is_quarter_end": last_of_month & (number % 3 == 2),
        "Is_quarter_start": (first == 1) & (number % 3 == 0),
        "Is_year_end": last_of_month & (number == 11),
        "Is_year_start": (first == 1) & (number == 0),
    }
    seconds = (moments - day).astype(int)
    if time:
        parts |= {"Hour": seconds // 3600, "Minute": seconds // 60 % 60, "Second": seconds % 60}
    return parts | {"Elapsed": moments.astype(np.int64)}


def _moments(frame, column: str) -> np.ndarray:
    """datetime64[s] values of a column of dates or of ISO text, NaT where empty; local time with a time zone."""
    nw, series = frames.narwhals(), frame[column]
    if series.dtype.is_temporal():
        if series.dtype == nw.Datetime and series.dtype.time_zone is not None:
            series = series.dt.replace_time_zone(None)
        return series.to_numpy().astype("datetime64[s]")
    values = [None if frames.is_empty(value) else value for value in series.to_list()]
    kind = frames.kind_of(series)
    if kind not in (frames.TEXT, frames.TIME):
        raise ValueError(f"column {column!r} holds {kind} ({series.dtype}), not dates: convert it first")
    try:
        return np.array([v.removesuffix("Z") if isinstance(v, str) else v for v in values], "datetime64[s]")
    except ValueError as error:
        raise ValueError(f"column {column!r} holds text that is no ISO date ({error}): parse it first") from None
