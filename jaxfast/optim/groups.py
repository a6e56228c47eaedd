"""Parameter groups: which leaf belongs to which, and one learning rate for each."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax

Labels = Callable[[Any], Any] | Any
Rate = float | None


def discriminative(lr, n_groups: int, *, factor: float | None = None) -> tuple[Rate, ...]:
    """One learning rate per group, first group first; a slice means what it means in fastai (`set_hyper`).

    A number is every group's rate; with `factor` it is the last group's, and each group before has the next
    one's rate divided by `factor` (ULMFiT's 2.6: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146).
    `slice(b)` is b for the last group and b / 10 for the others, `slice(a, b)` is geometric from a to b, and
    a sequence is taken as it is; its entries may be None (the group is frozen). ValueError if a sequence is
    not `n_groups` long, a slice falls or a rate is negative.

    >>> discriminative(slice(1e-5, 1e-3), 3)
    (1e-05, 0.0001, 0.001)
    >>> discriminative(slice(1e-3), 3)
    (0.0001, 0.0001, 0.001)
    >>> discriminative(1., 3, factor=2.)
    (0.25, 0.5, 1.0)
    """
    if n_groups < 1:
        raise ValueError(f"n_groups must be at least 1, got {n_groups}")
    is_number = _is_number(lr)
    if factor is not None and not (is_number and factor > 0):
        raise ValueError(f"factor spaces one rate by a positive number, got factor={factor} with lr={lr}")
    if isinstance(lr, slice):
        parts = lr.start, lr.stop
    else:
        parts = tuple(lr) if hasattr(lr, "__iter__") and not is_number else (lr,)
    if lr is None or not all(part is None or _is_number(part) for part in parts):
        raise ValueError(f"lr must be a number, a slice or a sequence of numbers and None, got {lr!r}")
    if is_number:
        rates = tuple(float(lr) / (factor or 1.0) ** i for i in reversed(range(n_groups)))
    elif isinstance(lr, slice):
        if lr.stop is None or lr.step is not None:
            raise ValueError(f"a slice of rates is slice(last) or slice(first, last), got {lr}")
        last = float(lr.stop)
        first = last / 10 if lr.start is None else float(lr.start)
        if lr.start is not None and not (first > 0 and last > 0):
            raise ValueError(f"slice(first, last) is geometric and takes two positive rates, got {lr}")
        if lr.start is not None and first > last:
            raise ValueError(f"slice(first, last) gives the last layers the highest rate, got {lr}: turn it round")
        ratio = 1.0 if lr.start is None else (last / first) ** (1 / max(n_groups - 1, 1))
        # The last rate is given, not computed: it is exact, and the only one if there is one group.
        rates = (*(first * ratio**i for i in range(n_groups - 1)), last)
    else:
        rates = tuple(None if rate is None else float(rate) for rate in parts)
        if len(rates) != n_groups:
            what = f"got {len(rates)} rates for {n_groups} parameter groups"
            raise ValueError(f"{what}: give one rate per group, a number or a slice")
    if not all(rate is None or 0 <= rate < float("inf") for rate in rates):
        raise ValueError(f"a learning rate must be finite and not negative, got {lr}")
    return rates


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0


def few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def label_by_prefix(groups: Sequence[Sequence[str]]) -> Callable[[Any], Any]:
    """A function from parameters to labels: a leaf gets the index of the group with a prefix of its path.

    A path joins keys, attribute names and indices with "/", so dicts, Flax variables and Equinox modules work
    alike. A prefix p matches p itself and what starts with "p/" or "p_": "layer1" matches "layer1_0/kernel",
    "block1" does not match "block10/kernel". The function raises ValueError that names the paths if a leaf
    matches no group or two, or if a group matches nothing.

    >>> label_by_prefix([("stem", "layer1"), ("head",)])({"stem": 0., "layer1_0": {"kernel": 0.}, "head": 0.})
    {'head': 1, 'layer1_0': {'kernel': 0}, 'stem': 0}
    """
    for i, prefixes in enumerate(groups):
        if isinstance(prefixes, str):
            raise ValueError(f"group {i} is a string: give a sequence of prefixes, such as ({prefixes!r},)")

    def has_prefix(path: str, prefixes: Sequence[str]) -> bool:
        return any(path == p or path.startswith((p + "/", p + "_")) for p in prefixes)

    def labels(params):
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        matches = [[i for i, prefixes in enumerate(groups) if has_prefix(path, prefixes)] for path in paths]
        found = list(zip(paths, matches, strict=True))
        if lost := [path for path, match in found if not match]:
            raise ValueError(f"no group has a prefix of {few(lost)}: add one to {list(groups)}")
        if torn := [f"{path} (groups {match})" for path, match in found if len(match) > 1]:
            raise ValueError(f"a parameter belongs to one group, but more have a prefix of {few(torn)}")
        if idle := [list(group) for i, group in enumerate(groups) if [i] not in matches]:
            raise ValueError(f"no parameter matches the group {idle[0]}; there are {few(paths)}")
        return jax.tree_util.tree_unflatten(treedef, [match[0] for match in matches])

    return labels


def labels_of(labels: Labels | None, tree) -> Any:
    if labels is None:
        return jax.tree.map(lambda _: 0, tree)
    groups = labels(tree) if callable(labels) else labels
    strange = {repr(g) for g in jax.tree.leaves(groups) if not (isinstance(g, numbers.Integral) and g >= 0)}
    if strange:
        raise ValueError(f"labels must be ints, 0 for the first group, got {few(sorted(strange))}")
    return groups


def count_groups(groups) -> int:
    return 1 + max(jax.tree.leaves(groups), default=0)
