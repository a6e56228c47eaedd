"""From scores of items to recommendations, and how good they are: functions of plain arrays."""

import numpy as np


def top_k(scores: np.ndarray, k: int, seen: np.ndarray | None = None) -> np.ndarray:
    """The numbers of the `k` highest scores of each row of (users, items), best first; equal ones in item order.

    Items marked in `seen`, booleans of the same shape, come last. ValueError where there are fewer than `k` items.

    >>> top_k(np.array([[.1, .9, .5]]), 2, np.array([[False, True, False]])).tolist()
    [[2, 0]]
    """
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k}: give a number from 1 to the {scores.shape[1]} items")
    if seen is not None:
        scores = np.where(seen, -np.inf, scores)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def recall_at_k(ranked: np.ndarray, relevant: np.ndarray) -> float:
    """The share of a user's relevant items that is among the `k` recommended, averaged over users who have one.

    `ranked` (users, k) item numbers, `relevant` (users, items) booleans; NaN where no user has a relevant item.

    >>> recall_at_k(np.array([[2, 0]]), np.array([[True, True, False]]))
    0.5
    """
    found = np.take_along_axis(relevant, ranked, axis=1).sum(1)
    total = relevant.sum(1)
    return float((found[total > 0] / total[total > 0]).mean()) if total.any() else float("nan")


def ndcg_at_k(ranked: np.ndarray, relevance: np.ndarray) -> float:
    """Normalised discounted cumulative gain of `ranked` (users, k), averaged over users who have a relevant item.

    `relevance` (users, items): booleans or gains of zero and more. The gain at rank r = 1, 2, ... counts
    1 / log2(r + 1), and the sum is divided by the best possible one (Järvelin and Kekäläinen 2002). NaN where no user
    has a relevant item.

    >>> round(ndcg_at_k(np.array([[2, 0]]), np.array([[True, False, False]])), 4)
    0.6309
    """
    k = ranked.shape[1]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gained = np.take_along_axis(relevance, ranked, axis=1) @ discounts
    best = -np.sort(-relevance.astype(float), axis=1)[:, :k] @ discounts
    return float((gained[best > 0] / best[best > 0]).mean()) if (best > 0).any() else float("nan")


def nearest_rows(vectors: np.ndarray, row: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `n` rows whose cosine with `row` is highest, itself left out, and the cosines."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit[row]
    order = np.argsort(-cosines, kind="stable")
    order = order[order != row][:n]
    return order, cosines[order]
