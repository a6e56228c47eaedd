"""A random forest over the table of a sweep: which hyper-parameters matter, how, and what to try next."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from jaxfast._extras import need
from jaxfast.messages import first, nearest
from jaxfast.plot import BLUE, ORANGE, finish, new_figure
from jaxfast.sweep.space import Choice, Setting, Uniform, check_space, settings


class Forest:
    """scikit-learn's random forest from settings to `metric`, fitted to the rows of a sweep.

    `rows`: what `sweep.run` gives; `space`: the distributions that the settings came from. `lower_is_better`: whether
    the metric is a loss. A row without a finite metric (its training diverged) counts as the worst one seen. `score`:
    the forest's out-of-bag R2; near 0 or below, the sweep is too short for the forest to mean anything.
    ValueError for fewer than 4 rows, an unknown metric, settings outside of `space`, and a metric that is the same in
    all rows.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        space: Mapping[str, Uniform | Choice],
        metric: str,
        *,
        lower_is_better: bool = True,
        trees: int = 300,
        seed: int = 0,
    ):
        ensemble = need("sklearn.ensemble", extra="sweep", purpose="forests of settings")
        check_space(space)
        self.rows, self.space, self.metric = list(rows), dict(space), metric
        self.lower_is_better, self.seed = lower_is_better, seed
        known = [name for row in self.rows for name in row if name not in space]
        if metric not in known:
            raise ValueError(f"no row has the metric {metric!r}{nearest(metric, known)}")
        values = np.array([row.get(metric, np.nan) for row in self.rows], float)
        finite = np.isfinite(values)
        if len(values) < 4 or not finite.any() or np.ptp(values[finite]) == 0:
            raise ValueError(f"a forest takes at least 4 rows with different {metric!r}, got {first(values.tolist())}")
        worst = values[finite].max() if lower_is_better else values[finite].min()
        self.values = np.where(finite, values, worst)
        self.codes = self._codes(self.rows)
        self.model = ensemble.RandomForestRegressor(
            trees, min_samples_leaf=2, max_features=0.7, oob_score=True, random_state=seed
        ).fit(self.codes, self.values)
        self.score = float(self.model.oob_score_)

    @property
    def best(self) -> Mapping[str, Any]:
        """The row with the best metric."""
        return self.rows[int(self.values.argmin() if self.lower_is_better else self.values.argmax())]

    def predict(self, given: Sequence[Setting]) -> tuple[np.ndarray, np.ndarray]:
        """The forest's mean for each setting, and the deviation of its trees."""
        return self._predict(self._codes(given))

    def importance(self) -> dict[str, float]:
        """How much R2 falls when one hyper-parameter's column is shuffled (permutation importance), greatest first."""
        means = self._permuted.importances_mean
        return {list(self.space)[i]: float(means[i]) for i in np.argsort(-means, kind="stable")}

    def partial_dependence(self, name: str, points: int = 25) -> tuple[list, np.ndarray]:
        """Values of one hyper-parameter, and the forest's mean over all rows with that value in place of their own
        (Friedman 2001). ValueError for a name that is not in the space."""
        if name not in self.space:
            raise ValueError(
                f"no hyper-parameter {name!r}: there are {first(list(self.space))}{nearest(name, self.space)}"
            )
        values = self.space[name].grid(points)
        means = []
        for value in values:
            codes = self.codes.copy()
            codes[:, list(self.space).index(name)] = self.space[name].code(value)
            means.append(self.model.predict(codes).mean())
        return values, np.array(means)

    def propose(self, n: int = 1, *, kappa: float = 1.0, candidates: int = 4096, seed: int = 0) -> list[Setting]:
        """`n` settings to try next, the most promising first: the best mean - `kappa` * deviation (for a metric that
        should be high: mean + kappa * deviation) in each of `n` random shares of `candidates` drawn from the space.

        Higher `kappa` explores more, 0 trusts the forest.
        """
        if not 1 <= n <= candidates:
            raise ValueError(f"n={n}: give a number from 1 to candidates={candidates}")
        drawn = settings(self.space, candidates, method="random", seed=seed)
        mean, deviation = self.predict(drawn)
        promise = (mean if self.lower_is_better else -mean) - kappa * deviation
        # The best n of all would be neighbours of each other.
        best = [share[promise[share].argmin()] for share in np.array_split(np.arange(candidates), n)]
        return [drawn[i] for i in sorted(best, key=lambda i: promise[i])]

    def plot_importance(self):
        """A figure of `importance`, with the deviation over repeated shuffles."""
        names = list(self.importance())[::-1]
        places = [list(self.space).index(name) for name in names]
        figure = new_figure(6, 0.4 * len(names) + 1.4)
        ax = figure.subplots()
        spread = self._permuted.importances_std[places]
        ax.barh(names, self._permuted.importances_mean[places], xerr=spread, color=BLUE)
        ax.set_xlabel(f"fall of R2 of {self.metric} when shuffled (out-of-bag R2 {self.score:.2f})")
        return finish(figure, ax, legend=False)

    def plot_dependence(self, *names: str):
        """A figure of `partial_dependence` on each hyper-parameter (default: all), over the results of the sweep."""
        names = names or tuple(self.space)
        columns = min(len(names), 3)
        figure = new_figure(4.2 * columns, 3.2 * -(-len(names) // columns))
        axes = figure.subplots(-(-len(names) // columns), columns, squeeze=False).ravel()
        for ax, name in zip(axes, names, strict=False):  # the last row may have free places
            values, means = self.partial_dependence(name)
            distribution, seen = self.space[name], [row[name] for row in self.rows]
            if isinstance(distribution, Choice):
                ax.scatter([distribution.code(value) for value in seen], self.values, s=14, color="0.6")
                ax.plot(range(len(values)), means, "o-", color=ORANGE, linewidth=2)
                ax.set_xticks(range(len(values)), [str(value) for value in values], fontsize=8)
            else:
                ax.scatter(seen, self.values, s=14, color="0.6")
                ax.plot(values, means, color=ORANGE, linewidth=2)
                ax.set_xscale("log" if distribution.log else "linear")
            ax.set_xlabel(name)
            ax.set_ylabel(self.metric)
        for ax in axes[len(names) :]:
            ax.axis("off")
        return finish(figure, *axes[: len(names)], legend=False)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in self.importance().items())
        return f"Forest({len(self.rows)} rows, {self.metric}: out-of-bag R2 {self.score:.2f}; importance {shown})"

    @cached_property
    def _permuted(self):
        inspection = need("sklearn.inspection", extra="sweep", purpose="forests of settings")
        return inspection.permutation_importance(
            self.model, self.codes, self.values, n_repeats=20, random_state=self.seed
        )

    def _codes(self, rows: Sequence[Mapping]) -> np.ndarray:
        codes = np.empty((len(rows), len(self.space)))
        for i, row in enumerate(rows):
            for j, (name, distribution) in enumerate(self.space.items()):
                if name not in row:
                    raise ValueError(f"row {i} has no {name!r}: it belongs to another space")
                try:
                    codes[i, j] = distribution.code(row[name])
                except ValueError as error:
                    raise ValueError(f"row {i}, {name!r}: {error}") from None
        return codes

    def _predict(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        trees = np.stack([tree.predict(codes) for tree in self.model.estimators_])
        return trees.mean(0), trees.std(0)
