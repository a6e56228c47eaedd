"""Texts after the rules, as numbers of their distinct chunks: what stands between two spaces is cut into tokens once.

25,000 film reviews hold 6.5 million chunks, 226,000 of them distinct.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from jaxfast.data.sources import tracked
from jaxfast.data.text.readable import SPACE
from jaxfast.data.text.rules import apply_rules

_BREAK = re.compile(r"[^\S ]\s*")


@dataclass(frozen=True, eq=False)
class Chunks:
    """Text i is the chunks `distinct[j]` for j in `codes[offsets[i] : offsets[i + 1]]`; the chunk "" has no tokens.

    A chunk is what stands between two spaces, or a run of line breaks in which spaces are written as "▁".
    """

    distinct: tuple[str, ...]
    codes: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Chunks":
        """The chunks of texts as `check_texts` gives them, after the rules.

        The rules are one core's work, 3.3 s for 25,000 film reviews: a cache does it once, while a pool of
        processes would import the user's script again in each of them.
        """
        numbers = defaultdict(count().__next__)
        codes = [
            np.array([numbers[chunk] for chunk in _spaced(apply_rules(text)).split(" ")], np.int32)
            for text in tracked(texts, "tokenizing", len(texts) > 10_000, len(texts))
        ]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in codes], dtype=np.int64)])
        return cls(tuple(numbers), np.concatenate([np.zeros(0, np.int32), *codes]), offsets)

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """How often each distinct chunk occurs in the texts at `rows`, (distinct chunks,)."""
        inside = np.zeros(len(self.offsets) - 1, bool)
        inside[rows] = True
        return np.bincount(self.codes[np.repeat(inside, np.diff(self.offsets))], minlength=len(self.distinct))


def _spaced(text: str) -> str:
    return _BREAK.sub(lambda found: f" {found[0].replace(' ', SPACE)} ", text)
