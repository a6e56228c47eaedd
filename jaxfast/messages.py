"""Wording that the data package's errors share."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


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
