"""Wording that errors share, and checks of settings that many functions have."""

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class NoAnswer(ValueError):
    """What a model computes is not finite, so that it says nothing of an item."""


def check_answer(outputs: Any) -> None:
    """Raise `NoAnswer` if a model's answer holds a number that is not finite: the largest of those is not a class."""
    values = np.asarray(outputs)
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)]
        raise NoAnswer(
            f"the model answers {bad.flat[0]}: its parameters are not finite (train again at a lower rate), or the "
            "item holds numbers that are far from those that it was trained on"
        )


def no_answers(count: int, rows: int) -> str:
    """What a table of predictions says of the rows that it leaves empty."""
    return f"{count} of {rows} rows have no answer: what the model computes for them is not finite"


def first(names: Sequence[Any], n: int = 5) -> str:
    """The first few of a list in words.

    >>> first(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(str(name) for name in names[:n]) + more


def nearest(name: Any, known: Iterable[Any]) -> str:
    """A suggestion to end an error about an unknown name with, or nothing.

    >>> nearest("lable", ["image", "label"])
    "; did you mean 'label'?"
    """
    close = difflib.get_close_matches(str(name), [str(other) for other in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def kind(value: Any) -> str:
    """The type of a value, with its article.

    >>> kind(3), kind("three"), kind(None)
    ('an int', 'a str', 'None')
    """
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def check_type(name: str, value: Any, wanted: type, maker: str) -> None:
    """ValueError for an argument that is not what `maker` makes."""
    if not isinstance(value, wanted):
        raise ValueError(f"{name} is {kind(value)}: give what {maker} makes")


def check_whole(name: str, value: Any, low: int = 1) -> None:
    """ValueError for a setting that is not a whole number from `low` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise ValueError(f"{name}={value!r}: give a whole number from {low} on")


def check_number(name: str, value: Any, low: float = 0.0, below: float = math.inf) -> None:
    """ValueError for a setting that is not a number, finite, from `low` to less than `below`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value < below:
        limit = f"to below {below:g}" if below < math.inf else "on"
        raise ValueError(f"{name}={value!r}: give a number from {low:g} {limit}")
