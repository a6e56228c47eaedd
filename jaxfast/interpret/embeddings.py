"""The vectors that a model has learnt for the categories of a column, as a table and as a picture."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxfast._extras import need
from jaxfast.plot import BLUE, finish, new_figure


@dataclass(frozen=True, eq=False, repr=False)
class Embeddings:
    """Row i of `vectors`, (categories, width), belongs to `values[i]`."""

    name: str
    values: tuple[Any, ...]
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, value: Any) -> np.ndarray:
        """The vector of one category; KeyError for one that the training rows do not have."""
        if value not in self.values:
            raise KeyError(f"{self.name!r} has no category {value!r}")
        return self.vectors[self.values.index(value)]

    def table(self):
        """A pandas data frame with one row per category."""
        pandas = need("pandas", extra="tabular", purpose="embedding tables")
        names = [f"{self.name}_{i}" for i in range(self.vectors.shape[1])]
        return pandas.DataFrame(self.vectors, index=pandas.Index(self.values, name=self.name), columns=names)

    def project(self, n: int = 2) -> np.ndarray:
        """The vectors on their first `n` principal components, (categories, n); the largest of each is positive."""
        centred = self.vectors - self.vectors.mean(0)
        left, scale, _ = np.linalg.svd(centred, full_matrices=False)
        points = np.zeros((len(centred), n), centred.dtype)
        kept = min(n, len(scale))
        points[:, :kept] = left[:, :kept] * scale[:kept]
        # A component's sign is arbitrary: settle it, so that two runs give the same picture.
        largest = points[np.abs(points).argmax(0), np.arange(n)]
        return points * np.where(largest < 0, -1, 1)

    def plot(self, n: int = 60):
        """A figure of the first two principal components with the names of `n` categories, the ones furthest out."""
        places = self.project(2)
        named = np.argsort(-np.square(places).sum(1), kind="stable")[:n]
        figure = new_figure(7, 6)
        ax = figure.add_subplot()
        ax.scatter(*places.T, s=14, color=BLUE)
        for i in named:
            ax.annotate(str(self.values[i]), places[i], xytext=(3, 3), textcoords="offset points", fontsize=8)
        ax.set(title=self.name, xlabel="first principal component", ylabel="second")
        return finish(figure, ax, legend=False)

    def __repr__(self) -> str:
        return f"Embeddings of {self.name!r}: {len(self)} categories, {self.vectors.shape[1]} numbers each"
