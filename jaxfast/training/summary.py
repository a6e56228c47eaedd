"""A learner's parameter groups as a table."""

import dataclasses
from typing import NamedTuple

import jax

from jaxfast.training.state import Groups, Trainable


class GroupSummary(NamedTuple):
    """One learning-rate group: its path prefixes, its number of parameters and how many of them are trained."""

    layers: tuple[str, ...]
    parameters: int
    trained: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The parameter groups of a model; `repr` draws the table."""

    model: str
    groups: tuple[GroupSummary, ...]
    compute: str

    @property
    def parameters(self) -> int:
        return sum(group.parameters for group in self.groups)

    @property
    def trained(self) -> int:
        return sum(group.trained for group in self.groups)

    @property
    def total(self) -> str:
        """The model in one line."""
        return f"{self.model}: {self.parameters:,} parameters, {self.trained:,} trained, computed in {self.compute}"

    def __repr__(self) -> str:
        rows = [("group", "layers", "parameters", "trains")]
        for i, group in enumerate(self.groups):
            layers = ", ".join(group.layers)
            trains = "all" if group.trained == group.parameters else "norm layers only" if group.trained else "frozen"
            rows.append((str(i), layers if len(layers) <= 60 else f"{layers[:57]}...", f"{group.parameters:,}", trains))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.total])


def summarize(model: str, params: dict, groups: Groups | None, part: Trainable, labels: dict, compute: str) -> Summary:
    """Count the parameters of each group; `labels` is the nested dict of group numbers of all of `params`."""
    layers = groups or (("everything",),)
    sizes, trained = [0] * len(layers), [0] * len(layers)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for (path, leaf), group in zip(leaves, jax.tree.leaves(labels), strict=True):
        sizes[group] += leaf.size
        if jax.tree_util.keystr(path, simple=True, separator="/") in part.paths:
            trained[group] += leaf.size
    rows = (GroupSummary(tuple(l), s, t) for l, s, t in zip(layers, sizes, trained, strict=True))
    return Summary(model, tuple(rows), compute)
