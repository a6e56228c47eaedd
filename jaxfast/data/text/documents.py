"""The token store: the ids of all texts in one array, and where each text begins."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Documents:
    """Texts as ids: text i is `ids[offsets[i] : offsets[i + 1]]`.

    `ids`: uint16 where the vocabulary has at most 65,536 tokens, else int32, (tokens,); `offsets`: int64
    (texts + 1,); `labels`: (texts,) or None.
    """

    ids: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], vocab_size: int, labels: np.ndarray | None = None) -> "Documents":
        """Texts that are given as their ids, one sequence each.

        >>> Documents.of([[2, 9], [2]], vocab_size=10).offsets.tolist()
        [0, 2, 3]
        """
        offsets = _offsets([len(text) for text in texts])
        ids = np.fromiter((token for text in texts for token in text), id_type(vocab_size), offsets[-1])
        return cls(ids, offsets, labels)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        """The ids of text `i`; IndexError where there is none."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"there are {len(self)} texts, and no number {i}")
        i %= len(self)
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each text has, int64 (texts,)."""
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> "Documents":
        """The texts at `index`, in its order."""
        index = np.asarray(index, int)
        ids = np.concatenate([self.ids[:0], *(self[i] for i in index)])
        labels = None if self.labels is None else self.labels[index]
        return Documents(ids, _offsets(self.lengths[index]), labels)

    def last(self, n: int) -> "Documents":
        """Every text cut to its last `n` tokens."""
        begins = np.maximum(self.offsets[:-1], self.offsets[1:] - n)
        ids = [self.ids[begin:end] for begin, end in zip(begins, self.offsets[1:], strict=True)]
        return Documents(np.concatenate([self.ids[:0], *ids]), _offsets(self.offsets[1:] - begins), self.labels)

    def save(self, path: str | os.PathLike) -> None:
        """Write an .npz file, all of it or none."""
        labels = {} if self.labels is None else {"labels": self.labels}
        save_arrays(path, ids=self.ids, offsets=self.offsets, **labels)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Documents":
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**arrays)

    def __repr__(self) -> str:
        return f"Documents: {len(self):,} texts, {len(self.ids):,} tokens"


def id_type(vocab_size: int) -> type:
    """The smaller of the two types of ids that holds a vocabulary."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def save_arrays(path: str | os.PathLike, **arrays: np.ndarray) -> None:
    """Write an .npz file under a passing name and move it into place, so that nobody reads half of it."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            np.savez(file, **arrays)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
