"""Where to say yes: a threshold per label, searched over every cut that predictions allow."""

from collections.abc import Sequence

import numpy as np

from jaxfast.metrics.classes import ratio


def best_thresholds(probabilities: np.ndarray, targets: np.ndarray, *, beta: float = 2.0) -> np.ndarray:
    """The threshold of each label, (C,) in 0..1, that gives the largest F-beta: yes is a probability above it.

    Exact: every cut between two distinct probabilities is tried. A threshold lies in the middle of its cut, the
    outermost ones being bounded by 0 and 1; of equally good cuts it is the one whose middle is nearest to one half.
    Search on a validation set and measure on another one: the fewer examples a label has, the more its threshold fits
    their noise.

    `probabilities` (N, C) in 0..1, `targets` (N, C) of 0 and 1; ValueError for others and for beta <= 0.

    >>> best_thresholds([[0.1], [0.3], [0.4], [0.9]], [[0], [1], [0], [1]], beta=2).tolist()
    [0.2]
    """
    check_beta(beta)
    probabilities, truths = check_rows(probabilities, targets)
    ranked, hits = _ranked(probabilities, truths)
    said_yes = np.arange(len(hits))[:, None]
    scores = ratio((1 + beta**2) * hits, beta**2 * truths.sum(0) + said_yes)
    edge = np.ones((1, ranked.shape[1]))
    above, below = np.concatenate([edge, ranked]), np.concatenate([ranked, 0 * edge])
    middle = below + (above - below) / 2
    middle = np.where(middle < above, middle, below)  # the middle of two neighbouring floats is one of them
    scores = np.where(above > below, scores, -1)  # equal probabilities cannot be told apart
    distance = np.where(scores == scores.max(0), np.abs(middle - 0.5), np.inf)
    return np.take_along_axis(middle, distance.argmin(0)[None], 0)[0]


def average_precisions(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The average precision of each label, (C,): the mean over its examples of the precision at their probability.

    NaN for a label that no example has. Equal probabilities count as one step, as in scikit-learn. Arguments as in
    `best_thresholds`.
    """
    probabilities, truths = check_rows(probabilities, targets)
    ranked, hits = _ranked(probabilities, truths)
    rows = np.arange(len(ranked))[:, None]
    last = np.concatenate([ranked[:-1] != ranked[1:], np.ones((1, ranked.shape[1]), bool)])
    step = np.minimum.accumulate(np.where(last, rows, len(ranked))[::-1])[::-1]  # the last row of an equal probability
    precision = np.take_along_axis(hits[1:] / (rows + 1), step, 0)
    with np.errstate(invalid="ignore"):
        return (precision * np.diff(hits, axis=0)).sum(0) / truths.sum(0)


def check_rows(probabilities: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, truths), fp64 and bool, both (N, C); ValueError for what are not such rows."""
    probabilities, targets = np.asarray(probabilities, np.float64), np.asarray(targets)
    if probabilities.ndim != 2 or probabilities.shape != targets.shape or not probabilities.size:
        raise ValueError(
            f"probabilities of shape {probabilities.shape} and targets of shape {targets.shape}: give both as "
            "(examples, labels), at least one of each"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability is not in 0..1: give what get_preds gives, not the raw outputs")
    if not np.isin(targets, (0, 1)).all():
        raise ValueError("targets hold other values than 0 and 1: give a row of them for each example")
    return probabilities, targets.astype(bool)


def check_thresholds(thresholds: float | Sequence[float] | np.ndarray, labels: int) -> np.ndarray:
    """`thresholds` as (labels,); ValueError where there is neither one nor one per label, or one is not in 0..1."""
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.shape not in ((), (labels,)) or not ((thresholds >= 0) & (thresholds <= 1)).all():
        given = thresholds.tolist() if thresholds.size < 5 else f"of shape {thresholds.shape}"
        raise ValueError(f"thresholds {given}: give a number from 0 to 1, or one for each of the {labels} labels")
    return np.broadcast_to(thresholds, labels).copy()


def check_beta(beta: float) -> None:
    """ValueError for a beta that weighs nothing."""
    if not beta > 0:
        raise ValueError(f"beta is {beta}: give a number above 0, what recall is worth beside precision")


def _ranked(probabilities: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each column's probabilities from the largest down, (N, C), and how many of the first k are true, (N + 1, C)."""
    order = np.argsort(-probabilities, axis=0, kind="stable")
    hits = np.cumsum(np.take_along_axis(truths, order, 0), 0)
    return np.take_along_axis(probabilities, order, 0), np.concatenate([np.zeros_like(hits[:1]), hits])
