"""What is asked of texts, labels and numbers before any work begins."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfast.data.labels import is_missing
from jaxfast.data.split import split_indices

_SURROGATE = re.compile("[\ud800-\udfff]")


def check_texts(texts: Any) -> list[str]:
    """The texts as strings; ValueError for one text alone, a missing one, and what is neither str nor bytes.

    Bytes are taken for UTF-8, and what is not UTF-8 in them becomes U+FFFD; so do halves of surrogate pairs.
    """
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"texts is one {type(texts).__name__}: give a list of texts")
    return [as_text(text, f"text {i}") for i, text in enumerate(texts)]


def as_text(text: Any, name: str = "the text") -> str:
    """One text as `check_texts` gives it; `name` is what an error calls it."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "replace")
    if isinstance(text, str):
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
    if is_missing(text):
        raise ValueError(f"{name} is missing ({text!r}): drop that row or give an empty text")
    raise ValueError(f"{name} is {text!r} of type {type(text).__name__}: give str or bytes")


def check_count(**numbers: Any) -> None:
    """ValueError, with its name, for what is not a whole number from 1 on."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number from 1 on")


def split_texts(
    n: int, valid: float | Sequence[int] | Sequence[bool], seed: int, labels: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`split_indices` of texts, which have no names: a fraction, row numbers or booleans."""
    if isinstance(valid, str) or (np.ndim(valid) == 1 and any(isinstance(row, str) for row in valid)):
        raise ValueError(f"valid={valid!r}: texts have no names, give a fraction such as 0.2, row numbers or booleans")
    return split_indices(n, valid, seed=seed, labels=labels)
