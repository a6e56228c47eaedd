"""Alternating least squares with biases, in numpy: the classical model that collaborative filtering has to beat."""

import numpy as np


def als(
    user: np.ndarray,
    item: np.ndarray,
    rating: np.ndarray,
    sizes: tuple[int, int],
    *,
    n_factors: int = 10,
    decay: float = 12.0,
    bias_decay: float = 4.0,
    rounds: int = 15,
    seed: int = 0,
):
    """A function (user, item) -> ratings, fitted to three arrays of one row per rating (Koren, Bell and Volinsky 2009).

    rating = mean + bias of the user + bias of the item + dot product of their factors. Each round solves every user's
    ridge regression of factors and bias given the items', and then the items' given the users'; `decay` is the ridge
    of factors, `bias_decay` that of biases. `sizes`: how many users and items; any higher number is unseen.
    """
    mean = rating.mean()
    rng = np.random.default_rng(seed)
    n_users, n_items = sizes
    users, items = (0.1 * rng.normal(size=(n, n_factors + 1)) for n in sizes)
    users[:, -1] = items[:, -1] = 0
    by_user, by_item = _groups(user, n_users), _groups(item, n_items)
    ridge = np.diag([*[decay] * n_factors, bias_decay])
    for _ in range(rounds):
        _solve(users, items, by_user, item, rating - mean, ridge)
        _solve(items, users, by_item, user, rating - mean, ridge)

    def predict(user: np.ndarray, item: np.ndarray) -> np.ndarray:
        # Whoever is unseen has no row: the number behind the last gets zeros, the mean of everybody's deviations.
        u, i = (np.vstack([table, np.zeros(n_factors + 1)]) for table in (users, items))
        dots = (u[user, :-1] * i[item, :-1]).sum(1)
        return np.clip(mean + dots + u[user, -1] + i[item, -1], rating.min(), rating.max())

    return predict


def _groups(index: np.ndarray, n: int) -> list[np.ndarray]:
    """For each of `n` the places where `index` names it."""
    order = np.argsort(index, kind="stable")
    return np.split(order, np.searchsorted(index[order], np.arange(1, n)))


def _solve(table, other, groups, index, target, ridge) -> None:
    """Every row of `table`, factors and a bias, as the ridge regression on the rows of `other` that it meets."""
    for row, places in enumerate(groups):
        met = other[index[places]]
        features = np.hstack([met[:, :-1], np.ones((len(met), 1))])
        wanted = target[places] - met[:, -1]
        table[row] = np.linalg.solve(features.T @ features + ridge, features.T @ wanted)
